"""What happens on the way: statuses without details of ours, answers that are none, retries. The servers are real."""

from __future__ import annotations

from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status
from tests.client.answering_server import answering
from tests.contract import ANSWER, IMAGE, KERNEL, call, good_request

from convolver.client import Client, DeadlineExceeded, NotAuthorised, ServiceUnavailable, TransportError
from convolver.client._client_shared import OWN_TEXT
from convolver.core import errors
from convolver.core.status import to_status
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Behaviour = Callable[[bytes, grpc.ServicerContext], bytes]


@contextmanager
def serving(behaviour: Behaviour | None) -> Iterator[Client]:
    """A client of a server in this process that answers each Convolve like this; None: a server without our service."""
    behaviours = {} if behaviour is None else {"Convolve": behaviour}
    with answering(**behaviours) as address, Client(address, timeout=30) as client:
        yield client


def raised(behaviour: Behaviour | None) -> errors.ConvolverError:
    """What the client raises where the server behaves so."""
    with serving(behaviour) as client, pytest.raises(errors.ConvolverError) as caught:
        client.conv2d(IMAGE, KERNEL)
    return caught.value


def aborting(code: grpc.StatusCode, *details: tuple[str, bytes]) -> Behaviour:
    def behaviour(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata(details)
        context.abort(code, f"it is {code.name}")

    return behaviour


MEANINGS = {
    grpc.StatusCode.UNAVAILABLE: ServiceUnavailable,
    grpc.StatusCode.CANCELLED: ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAUTHENTICATED: NotAuthorised,
    grpc.StatusCode.PERMISSION_DENIED: NotAuthorised,
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitExceeded,
    grpc.StatusCode.INTERNAL: errors.BackendFailure,
    grpc.StatusCode.UNKNOWN: errors.BackendFailure,
    grpc.StatusCode.INVALID_ARGUMENT: errors.BackendFailure,
}


@pytest.mark.parametrize("code", MEANINGS, ids=lambda code: code.name)
def test_a_status_without_details_has_a_meaning_and_keeps_its_text(code: grpc.StatusCode) -> None:
    error = raised(aborting(code))
    assert type(error) is MEANINGS[code]
    assert error.message.startswith("127.0.0.1:")
    assert f"it is {code.name}" in error.message


@pytest.mark.parametrize(
    ("error", "base"),
    [(ServiceUnavailable, ConnectionError), (DeadlineExceeded, TimeoutError), (NotAuthorised, PermissionError)],
)
def test_a_transport_error_is_also_pythons_own(error: type[Exception], base: type[Exception]) -> None:
    assert issubclass(error, base)
    assert issubclass(error, TransportError)


def test_what_grpc_says_where_it_forgot_how_a_stream_ended_is_unavailable() -> None:
    def behaviour(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.INTERNAL, OWN_TEXT)

    assert type(raised(behaviour)) is ServiceUnavailable


def test_a_server_without_the_service_does_not_support_it() -> None:
    assert type(raised(None)) is errors.Unsupported


SENT = [
    errors.InvalidConvolution("stride[1] is 0", "stride[1]"),
    errors.Overloaded("come again", retry_after=0.025),
    errors.BackendFailure("the server failed", "0123456789abcdef"),
    errors.Unsupported("no \N{GREEK SMALL LETTER PI} here, 100% sure"),
]


@pytest.mark.parametrize("error", SENT, ids=lambda error: type(error).__name__)
def test_an_error_with_details_is_raised_as_it_was(error: errors.ConvolverError) -> None:
    def behaviour(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort_with_status(rpc_status.to_status(to_status(error)))

    rebuilt = raised(behaviour)
    own = {name: value for name, value in vars(rebuilt).items() if name != "attempts"}
    assert (type(rebuilt), own) == (type(error), vars(error))


STRANGE = {
    "no protobuf": b"\xff\xff\xff",
    "of another status": to_status(errors.Unsupported("something else")).SerializeToString(),
    "of nobody's class": b"",
}


@pytest.mark.parametrize("details", STRANGE.values(), ids=STRANGE.keys())
def test_strange_details_leave_the_statuss_own_meaning(details: bytes) -> None:
    error = raised(aborting(grpc.StatusCode.PERMISSION_DENIED, ("grpc-status-details-bin", details)))
    assert type(error) is NotAuthorised
    assert "it is PERMISSION_DENIED" in error.message


def test_a_call_that_is_unavailable_is_tried_three_times(client: Client) -> None:
    calls = count(1)
    with grpc.insecure_channel(client.address) as channel:
        answer = call(channel, good_request())

    def behaviour(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if next(calls) < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return answer

    with serving(behaviour) as other:
        np.testing.assert_array_equal(other.conv2d(IMAGE, KERNEL), ANSWER)
    assert next(calls) == 4


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT], ids=lambda code: code.name
)
def test_a_call_that_failed_otherwise_is_tried_once(code: grpc.StatusCode) -> None:
    calls = count(1)

    def behaviour(_request: bytes, context: grpc.ServicerContext) -> bytes:
        next(calls)
        context.abort(code, "no")

    raised(behaviour)
    assert next(calls) == 2


NO_ANSWERS = {"cut short": b"\x0a\x7f", "no protobuf within": b"\x0a\x02\xff\xff", "nothing": b""}


@pytest.mark.parametrize("answer", NO_ANSWERS.values(), ids=NO_ANSWERS.keys())
def test_an_answer_that_is_none_is_the_servers_failure(answer: bytes) -> None:
    assert type(raised(lambda _request, _context: answer)) is errors.BackendFailure


def changed(answer: bytes, *data: bytes) -> bytes:
    response = pb.ConvolveResponse.FromString(answer)
    del response.data[:]
    response.data.extend(data)
    return response.SerializeToString()


@pytest.mark.parametrize("data", [[], [bytes(16)] * 2, [bytes(15)]], ids=["no data", "twice", "a byte too few"])
def test_an_answer_whose_data_is_not_its_plans_is_the_servers_failure(client: Client, data: list[bytes]) -> None:
    with grpc.insecure_channel(client.address) as channel:
        answer = changed(call(channel, good_request()), *data)
    assert type(raised(lambda _request, _context: answer)) is errors.BackendFailure
