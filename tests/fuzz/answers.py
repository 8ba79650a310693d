"""What a client reads: answers and statuses of a server that means it ill."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from tests.fuzz import calls, mutation, seeds
from tests.fuzz.target import Target, framed, frames

from convolver.client import _answers, _client_shared
from convolver.client._chunks import Incoming
from convolver.core import errors
from convolver.core.errors import ConvolverError
from convolver.core.gradients import Wanted
from convolver.core.status import from_status, to_status
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.message import Message

_WANTED = Wanted(input=True, weight=True, bias=True)
_IMAGE, _KERNEL = (np.ones(shape, np.float32) for shape in (seeds.IMAGE, seeds.KERNEL))


def _request() -> Any:  # noqa: ANN401  # of the client, whose module is private
    return _client_shared.convolve_request(_IMAGE, _KERNEL, None, {}, None)


def _unary(message: bytes) -> None:
    reply, request = _answers.unary_reply(message), _request()
    for read in (_answers.convolve_answer, _answers.stack_answer):
        _refusing(partial(read, request, reply))
    for read_gradients in (_answers.gradients_answer, _answers.stack_gradients_answer):
        _refusing(partial(read_gradients, request, reply, _WANTED))


def _refusing(read: Callable[[], object]) -> None:
    """One of several readings of the same."""
    try:
        read()
    except ConvolverError:
        return


def _plan(message: bytes) -> None:
    _refusing(partial(_answers.plan_answer, message))
    _answers.stack_plan_answer(message)


def _stream(message: bytes) -> None:
    outcome = _answers.stream_answer(message, "here", None).outcome
    if isinstance(outcome, ConvolverError):
        str(outcome)


def _chunked(*messages: bytes) -> None:
    incoming = Incoming(_request())
    for message in messages:
        incoming.take(message)
    incoming.reply()


_READERS: list[tuple[type[Message], Callable[..., object]]] = [
    (pb.ConvolveResponse, _unary),
    (pb.ConvolveStreamResponse, _stream),
    (pb.ConvolveChunkedResponse, _chunked),
    (pb.PlanResponse, _plan),
    (pb.GetInfoResponse, _client_shared.info_answer),
]
"""An input's first byte says which of them reads its messages."""


def target(name: str) -> Target:
    """The target of that name."""
    if name == "status":
        return Target(_status, _statuses(), mutation.of_message(status_pb2.Status))
    return Target(_read, _seeds(), mutation.of_one_of([kind for kind, _ in _READERS]))


def _read(data: bytes) -> None:
    kind, reader = _READERS[(data[0] if data else 0) % len(_READERS)]
    messages = frames(data[1:])
    try:
        reader(*(messages if kind is pb.ConvolveChunkedResponse else messages[:1] or [b""]))
    except ConvolverError:
        return


def _seeds() -> Sequence[bytes]:
    """Answers of our own server."""
    server, made = calls.serving(), list[bytes]()
    for message in calls.requests():
        whole = pb.ConvolveRequest.FromString(message)
        planned = pb.PlanRequest(convolution=whole.convolution).SerializeToString()
        streamed = pb.ConvolveStreamRequest(convolution=whole.convolution, data=whole.data).SerializeToString()
        methods = {"Convolve": message, "ConvolveStream": streamed, "ConvolveChunked": message, "Plan": planned}
        for number, (method, request) in enumerate(methods.items()):
            answers = server.call(f"ConvolutionService/{method}", request)
            made.append(bytes([number]) + framed(answers or []))
    info = server.call("ConvolutionService/GetInfo", b"")
    return [*made, bytes([len(_READERS) - 1]) + framed(info or [])]


def _status(data: bytes) -> None:
    """What is one of our errors can be told to others, and is the same then."""
    try:
        error = from_status(status_pb2.Status.FromString(data))
    except DecodeError:  # which who calls it looks after
        return
    if error is not None:
        again = from_status(to_status(error))
        assert type(again) is type(error)


def _statuses() -> list[bytes]:
    made: list[ConvolverError] = [
        errors.InvalidConvolution("stride[0] is 0", "stride[0]"),
        errors.LimitExceeded("too large", "bytes", 10, 20, "--max-message"),
        errors.Overloaded("later", 0.5),
        errors.UnknownLayer("not here", calls.DIGEST),
        errors.BackendFailure("failed", "0123"),
    ]
    info = error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="convolver", metadata={"retry_after": "1e300"})
    foreign = status_pb2.Status(code=8, message="text")
    foreign.details.add().Pack(info)
    return [status.SerializeToString() for status in [*map(to_status, made), foreign]]
