"""Calls as a stranger writes them from the .proto files: plain protobuf and raw bytes, without the SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from convolver.v1 import convolution_pb2, tensor_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SERVICE = pb.DESCRIPTOR.services_by_name["ConvolutionService"].full_name
FLOAT32 = tensor_pb2.DATA_TYPE_FLOAT32

IMAGE = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
KERNEL = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
ANSWER = np.array([[19, 25], [37, 43]], np.float32).reshape(1, 1, 2, 2)
"""What IMAGE gives with KERNEL (Dive into Deep Learning, 7.2)."""


def convolution(
    input_shape: Sequence[int] = (1, 1, 3, 3),
    weight_shape: Sequence[int] = (1, 1, 2, 2),
    dtype: tensor_pb2.DataType.ValueType = FLOAT32,
) -> convolution_pb2.Convolution:
    """Headers of one layer without bias, all parameters left out."""
    weight = tensor_pb2.Tensor(dtype=dtype, shape=weight_shape)
    layer = convolution_pb2.Layer(definition=convolution_pb2.LayerDefinition(weight=weight))
    return convolution_pb2.Convolution(layers=[layer], input=tensor_pb2.Tensor(dtype=dtype, shape=input_shape))


def request(header: convolution_pb2.Convolution, *data: NDArray[Any] | bytes) -> bytes:
    """A ConvolveRequest as protobuf itself serialises it."""
    entries = [bytes(entry) if isinstance(entry, bytes) else entry.tobytes() for entry in data]
    return pb.ConvolveRequest(convolution=header, data=entries).SerializeToString()


def good_request() -> bytes:
    """The one that ANSWER answers."""
    return request(convolution(), KERNEL, IMAGE)


def call(channel: grpc.Channel, message: bytes, method: str = "Convolve", timeout: float = 60.0) -> bytes:
    """The answer's bytes."""
    behaviour: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{method}")
    return behaviour(message, timeout=timeout)


def output(answer: bytes, dtype: Any = np.float32) -> NDArray[Any]:  # noqa: ANN401 - whatever NumPy takes for a dtype
    """The tensor of a ConvolveResponse."""
    response = pb.ConvolveResponse.FromString(answer)
    (header,), (data,) = response.result.plan.outputs, response.data
    return np.frombuffer(data, dtype).reshape(tuple(header.shape))


class Refusal(NamedTuple):
    """A status and its details, each the first of its kind, empty where there is none."""

    code: grpc.StatusCode
    text: str
    info: error_details_pb2.ErrorInfo
    bad_request: error_details_pb2.BadRequest
    quota: error_details_pb2.QuotaFailure

    @property
    def field(self) -> str:
        """The path of the first wrong field."""
        return self.bad_request.field_violations[0].field if self.bad_request.field_violations else ""


def refusal(failure: grpc.RpcError) -> Refusal:
    """What a failed call says."""
    rpc = cast("grpc.Call", failure)
    status = rpc_status.from_call(rpc) or status_pb2.Status()
    info = error_details_pb2.ErrorInfo()
    bad_request, quota = error_details_pb2.BadRequest(), error_details_pb2.QuotaFailure()
    for packed in status.details:
        for detail in (info, bad_request, quota):
            packed.Unpack(detail)
    return Refusal(rpc.code(), rpc.details() or "", info, bad_request, quota)


def refused(channel: grpc.Channel, message: bytes, method: str = "Convolve", timeout: float = 60.0) -> Refusal:
    """What the server says to a call that it refuses."""
    try:
        call(channel, message, method, timeout)
    except grpc.RpcError as failure:
        return refusal(failure)
    raise AssertionError(f"{method} did not refuse")
