"""Calls of LayerService as a stranger writes them, and small layers for them."""

from __future__ import annotations

import urllib.request
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import refusal

from convolver.v1 import convolution_pb2, tensor_pb2
from convolver.v1 import layer_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.conftest import RunningServer
    from tests.contract import Refusal

    from convolver.v1.layer_service_pb2_grpc import LayerServiceStub

SERVICE = "convolver.v1.LayerService"
BUDGET = 16 * 2**20
"""Bytes of the store of the server that the fixture `layer_server` starts."""

FLOAT32, BOOL = tensor_pb2.DATA_TYPE_FLOAT32, tensor_pb2.DATA_TYPE_BOOL
ABSENT = f"sha256:{'0' * 64}"
UNKNOWN = b"\xa2\x06\x02hi"
"""Field 100, length-delimited."""

WEIGHT = np.arange(24, dtype=np.float32).tobytes()
BIAS = np.arange(4, dtype=np.float32).tobytes()


def definition(**changes: Any) -> convolution_pb2.LayerDefinition:  # noqa: ANN401  # any field
    """Four kernels of two by three for one channel, and their bias."""
    fields: dict[str, Any] = {
        "weight": tensor_pb2.Tensor(dtype=FLOAT32, shape=[4, 1, 2, 3]),
        "bias": tensor_pb2.Tensor(dtype=FLOAT32, shape=[4]),
        **changes,
    }
    return convolution_pb2.LayerDefinition(**fields)


def first(*data: bytes, **changes: Any) -> pb.PutLayerRequest:  # noqa: ANN401  # any field of the definition
    return pb.PutLayerRequest(definition=definition(**changes), data=data)


def rest(*data: bytes) -> pb.PutLayerRequest:
    return pb.PutLayerRequest(data=data)


def put(stub: LayerServiceStub, *messages: pb.PutLayerRequest) -> pb.HeldLayer:
    layer: pb.HeldLayer = stub.PutLayer(iter(messages), timeout=60).layer
    return layer


def put_number(stub: LayerServiceStub, number: int) -> str:
    """Puts a layer of one weight; its digest."""
    weight = tensor_pb2.Tensor(dtype=FLOAT32, shape=[1, 1, 1])
    return put(stub, first(np.float32(number).tobytes(), weight=weight, bias=None)).digest


def put_raw(channel: grpc.Channel, messages: Iterable[bytes]) -> bytes:
    """The answer's bytes."""
    call: Any = channel.stream_unary(f"/{SERVICE}/PutLayer")
    answer: bytes = call(iter(messages), timeout=60)
    return answer


def refused(call: Callable[[], object]) -> Refusal:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return refusal(caught.value)


def listed(stub: LayerServiceStub) -> list[str]:
    return [layer.digest for layer in stub.ListLayers(pb.ListLayersRequest()).layers]


def metric(running: RunningServer, series: str) -> float:
    with urllib.request.urlopen(f"{running.http}/metrics", timeout=30) as answer:  # noqa: S310  # our own http://
        lines = answer.read().decode().splitlines()
    return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(series + " ")), "0"))
