"""All of a client that has no colour: requests and answers as bytes, and what a failed call means."""

from __future__ import annotations

from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import status_pb2 as google_status_pb2
from grpc_status import rpc_status

from convolver.client._destination import destination
from convolver.client._interchange import AnyArray, to_array
from convolver.client._requests import Described, Request, described, enveloped
from convolver.client.errors import DeadlineExceeded, NotAuthorised, ServiceUnavailable
from convolver.core import dtypes, plan_codec, request_codec
from convolver.core.errors import BackendFailure, ConvolverError, InvalidConvolution, LimitExceeded, Unsupported
from convolver.core.geometry import Geometry
from convolver.core.operation import Tensor
from convolver.core.parse import parse
from convolver.core.status import from_status
from convolver.core.tensors import header, to_bytes
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from convolver.core.choose import Capability
    from convolver.core.parameters import Parameters
    from convolver.v1 import status_pb2

REMEMBERED = 256
"""Headers of requests, and plans of answers, that are kept: callers use the same few shapes again and again."""

OWN_TEXT = "Internal error from Core"
"""What gRPC's asyncio says (INTERNAL) of a call that had ended when it was written to: now and then it forgets how."""

_MEANINGS: dict[grpc.StatusCode, type[ConvolverError]] = {
    grpc.StatusCode.CANCELLED: ServiceUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.PERMISSION_DENIED: NotAuthorised,
    grpc.StatusCode.UNAUTHENTICATED: NotAuthorised,
    grpc.StatusCode.UNAVAILABLE: ServiceUnavailable,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
}
"""Statuses without details of ours: gRPC's own, or a proxy's."""


class Info(NamedTuple):
    """What a server is: versions of what matters, back ends (the name, the device, the types and methods of each), its
    limits in elements, bytes and multiply-accumulates, and whether it shares memory with callers on its host.
    """

    versions: dict[str, str]
    backends: tuple[Capability, ...]
    limits: dict[str, int]
    shared_memory: bool = False

    @property
    def devices(self) -> tuple[str, ...]:
        """The devices of the back ends, for people."""
        return tuple(dict.fromkeys(backend.device for backend in self.backends))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The types that some back end computes."""
        return tuple(name for name in dtypes.TABLE if any(name in backend.dtypes for backend in self.backends))


class Written:
    """Parameters that compare by how they are written, since 1, 1.0 and True are equal to Python and not to us."""

    __slots__ = ("_text", "parameters")

    def __init__(self, parameters: Parameters) -> None:
        self.parameters = parameters
        try:
            self._text = repr({name: value for name, value in parameters.items() if name != "timeout"})
        except ValueError:  # integers of thousands of digits, which Python does not write; parse says so in our words
            self._text = f"{id(self)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Written) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


def convolve_request(
    input: AnyArray, weight: AnyArray, bias: AnyArray, parameters: Parameters, out: AnyArray
) -> Request:
    """A request for a convolution whose output is written to `out`, where that is given.

    Raises InvalidConvolution, with the server's own words, for what shapes can decide: nothing is sent then.
    """
    values = {"weight": weight, "bias": bias, "input": input}
    arrays = {name: to_array(value) for name, value in values.items() if name != "bias" or value is not None}
    headers = {name: header(array, name) for name, array in arrays.items()}
    known = _remembered(headers["input"], headers["weight"], headers.get("bias"), Written(parameters))
    data = [to_bytes(array) for array in arrays.values()]
    return Request(known, data, input, destination(out, known.answer[0], data))


@lru_cache(REMEMBERED)
def _remembered(input: Tensor, weight: Tensor, bias: Tensor | None, written: Written) -> Described:
    return _described(input, weight, bias, written.parameters)


def _described(input: Tensor, weight: Tensor, bias: Tensor | None, parameters: Parameters) -> Described:
    geometry = Geometry.of(parse(input, weight, bias, parameters))  # the server will refuse in the same words
    convolution = request_codec.single_to_proto(input, weight, bias, parameters)
    return described(convolution.SerializeToString(), [geometry], None)


def plan_request(
    input_shape: Sequence[int], weight_shape: Sequence[int], dtype: str, parameters: Parameters, *, bias: bool
) -> bytes:
    """A Plan request. Raises as `convolve_request` does."""
    name = dtypes.named(dtype).name
    shapes = (Tensor(name, tuple(input_shape)), Tensor(name, tuple(weight_shape)))
    channels = parse(*shapes, None, parameters).out_channels
    return enveloped(_described(*shapes, Tensor(name, (channels,)) if bias else None, parameters).convolution)


def info_request() -> bytes:
    """A GetInfo request."""
    return pb.GetInfoRequest().SerializeToString()


def info_answer(response: bytes) -> Info:
    """What a GetInfo response says."""
    with blaming_the_server():
        message = pb.GetInfoResponse.FromString(response)
    limits = {field.name: getattr(message.limits, field.name) for field in pb.Limits.DESCRIPTOR.fields}
    return Info(
        dict(message.versions),
        tuple(map(plan_codec.capability_from_proto, message.backends)),
        limits,
        message.shared_memory,
    )


def check_rank(weight: AnyArray, ndim: int, parameters: Parameters) -> None:
    """Raises InvalidConvolution unless the weight has `ndim` spatial dimensions."""
    shape = tuple(weight.shape if hasattr(weight, "shape") else to_array(weight).shape)
    if len(shape) != ndim + 2:
        method = f"conv_transpose{ndim}d" if parameters.get("transposed") else f"conv{ndim}d"
        raise InvalidConvolution(
            f"weight {shape} has {len(shape)} dimensions; {method} takes {ndim + 2}", "weight.shape"
        )


def error_of(failure: grpc.RpcError, address: str, timeout: float | None) -> ConvolverError:
    """What a failed call means: the server's own error where it sent one, else what happened on the way."""
    call = cast("grpc.Call", failure)
    error = _sent_error(call)
    if error is not None:
        return error
    return _meant(call.code(), call.details() or "", address, timeout)


def is_unavailable(failure: grpc.RpcError) -> bool:
    """Whether nobody answers there."""
    return cast("grpc.Call", failure).code() is grpc.StatusCode.UNAVAILABLE


def error_of_status(sent: status_pb2.Status, address: str, timeout: float | None) -> ConvolverError:
    """What the status of one answer of a stream means."""
    status = google_status_pb2.Status.FromString(sent.SerializeToString())
    code = next((code for code in grpc.StatusCode if code.value[0] == status.code), grpc.StatusCode.UNKNOWN)
    return from_status(status) or _meant(code, status.message, address, timeout)


def _meant(code: grpc.StatusCode, text: str, address: str, timeout: float | None) -> ConvolverError:
    if text == OWN_TEXT:
        return ServiceUnavailable(f"{address}: the stream ended while it was written to")
    meaning = _MEANINGS.get(code)
    if meaning is DeadlineExceeded:
        return DeadlineExceeded(f"{address}: no answer within the timeout of {timeout} s ({text})")
    if meaning is not None:
        return meaning(f"{address}: {text}")
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return LimitExceeded(f"{address}: {text} (--max-message)", "bytes of one message", setting="--max-message")
    return BackendFailure(f"{address} failed with {code.name}: {text}")


def _sent_error(call: grpc.Call) -> ConvolverError | None:
    """The error that the server sent in the call's details, if it did."""
    try:
        status = rpc_status.from_call(call)
        return from_status(status) if status else None
    except (DecodeError, ValueError):  # details that contradict the status, or are none: a proxy's, or another server's
        return None


@contextmanager
def blaming_the_server() -> Iterator[None]:
    """A wrong answer raises what a wrong request would; here it is the server's failure."""
    try:
        yield
    except (DecodeError, ValueError, LimitExceeded, LookupError) as error:  # InvalidConvolution is a ValueError
        raise BackendFailure(f"the answer is none of this contract: {error}") from error
