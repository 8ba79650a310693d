"""Convolutions that are in order, made by our own codec: what inputs are made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from tests.fuzz.serving import REGION, REGION_BYTES

from convolver.core.digest import digest_of
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.request_codec import convolution_to_proto, definition_to_proto, pooling_to_proto, single_to_proto
from convolver.core.stack import ConvolutionLayer
from convolver.core.stack_plan import tensor_bytes
from convolver.v1 import tensor_pb2
from convolver.v1.convolution_pb2 import Convolution, Layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convolver.core.parameters import Parameters

IMAGE, KERNEL = (1, 2, 6, 5), (2, 2, 3, 3)


def convolutions() -> Iterator[Convolution]:
    """One of each kind."""
    yield from _singles()
    yield from _others()
    yield _stack()


def definition() -> bytes:
    """A layer without a bias, serialised."""
    return definition_to_proto(ConvolutionLayer(Tensor("float32", KERNEL), None, {})).SerializeToString()


def layer_data() -> bytes:
    return bytes(tensor_bytes(Tensor("float32", KERNEL)))


def _singles() -> Iterator[Convolution]:
    same: dict[str, Any] = {"padding": "same", "stride": 2, "activation": "gelu"}
    yield _single({})
    yield _single(same)
    yield _single({"padding": ((1, 0), (-1, 2)), "padding_mode": "reflect", "dilation": 2, "input_dilation": 2})
    yield _single({"padding": "full", "padding_mode": "constant", "padding_value": 3.0}, dtype="int8")
    yield _single({"overflow": "wrap", "output_dtype": "int16", "flip": True}, dtype="uint8")
    yield _single({"transposed": True, "stride": 2, "output_padding": 1}, dtype="float64")
    yield _single({"transposed": True, "stride": 2, "output_size": (13, 12)}, dtype="bfloat16")
    yield _single({"algorithm": "fft", "backend": "reference"}, image=(1, 2, 16, 16))
    yield _single({"batch_groups": 2}, image=(2, 2, 6, 5))
    yield _single({"groups": 2, "precision": "medium"}, image=(4, 6, 5), kernel=(2, 2, 3, 3), dtype="float16")
    yield _single({"layout": "channels_last"}, image=(1, 9, 2), kernel=(3, 2, 4), bias=4, dtype="bool")
    yield _single({"padding": "causal"}, image=(1, 1, 4, 4, 4), kernel=(1, 1, 2, 2, 2), dtype="float8_e4m3fn")


def _others() -> Iterator[Convolution]:
    """Gradients; layers of the store, and for it; shared memory."""
    grad_output = Tensor("float32", (1, 2, 4, 3))
    for wanted in (Wanted(input=True, weight=False, bias=False), Wanted(input=True, weight=True, bias=True)):
        yield _single({}, gradients=(wanted, grad_output))
    named = _single({})
    named.layers[0].Clear()
    named.layers[0].digest = digest_of(definition(), memoryview(layer_data()), None)
    yield named
    kept = _single({})
    kept.layers[0].keep = True
    yield kept
    shared = _single({})
    shared.input_source.region.CopyFrom(_region(240, 0))
    shared.output_regions.append(_region(96, REGION_BYTES - 96))
    yield shared


def _stack() -> Convolution:
    input, weight = Tensor("float32", IMAGE), Tensor("float32", KERNEL)
    definitions = [
        definition_to_proto(ConvolutionLayer(weight, None, cast("Parameters", {"padding": 1, "activation": name})))
        for name in ("relu", "tanh")
    ]
    pooling = pooling_to_proto({"kind": "max", "kernel": 2, "stride": 2, "padding": 1}, 2)
    adaptive = pooling_to_proto({"kind": "adaptive_average", "output_size": 2}, 2)
    layers = [
        Layer(definition=definitions[0]),
        Layer(pooling=pooling),
        Layer(definition=definitions[1]),
        Layer(pooling=adaptive),
    ]
    return convolution_to_proto(input, layers, {})


def _single(
    parameters: dict[str, Any],
    image: tuple[int, ...] = IMAGE,
    kernel: tuple[int, ...] = KERNEL,
    bias: int = 0,
    dtype: Any = "float32",  # noqa: ANN401  # one of the names
    gradients: tuple[Wanted, Tensor] | None = None,
) -> Convolution:
    input, weight = Tensor(dtype, image), Tensor(dtype, kernel)
    added = Tensor(dtype, (bias,)) if bias else None
    return single_to_proto(input, weight, added, cast("Parameters", parameters), gradients)


def _region(length: int, offset: int) -> tensor_pb2.SharedRegion:
    return tensor_pb2.SharedRegion(id=REGION, offset=offset, length=length)
