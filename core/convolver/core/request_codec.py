"""Between whole requests of convolver.v1 and the core's own words: single convolutions, stacks, wanted gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from convolver.core import dtypes
from convolver.core.codec import (
    ACTIVATION,
    FROM_DTYPE,
    LISTS,
    OVERFLOW,
    Words,
    entries,
    execution_to_proto,
    parameters_from_proto,
    parameters_to_proto,
    tensor_from_proto,
    tensor_to_proto,
)
from convolver.core.errors import InvalidConvolution, UnknownLayer
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.parameters import Parameters
from convolver.core.parse import parse_execution
from convolver.core.pooling import Pooling, PoolingParameters
from convolver.core.stack import MOST_LAYERS, ConvolutionLayer, Layer, Step, parse_stack
from convolver.core.values import per_dimension
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import tensor_pb2

POOLING_LISTS = ("kernel", "stride", "padding", "dilation", "output_size")

POOLING_KIND = Words(pb.PoolingKind, "POOLING_KIND_")

_NO_DTYPE = tensor_pb2.DATA_TYPE_UNSPECIFIED


def definition_to_proto(layer: ConvolutionLayer) -> pb.LayerDefinition:
    """A convolution's parameters and the headers of its weights. Raises InvalidConvolution as `parameters_to_proto`."""
    given: Mapping[str, Any] = layer.parameters
    return pb.LayerDefinition(
        parameters=parameters_to_proto(layer.parameters, len(layer.weight.shape) - 2),
        weight=tensor_to_proto(layer.weight),
        bias=None if layer.bias is None else tensor_to_proto(layer.bias),
        activation=ACTIVATION.write(given.get("activation"), "activation"),
    )


def pooling_to_proto(words: PoolingParameters, ndim: int) -> pb.Pooling:
    """A pooling. Raises InvalidConvolution for what is no word or number, or is not one for each dimension."""
    lists: dict[str, Any] = {
        name: per_dimension(words.get(name), ndim, name) for name in POOLING_LISTS if words.get(name) is not None
    }
    return pb.Pooling(kind=POOLING_KIND.write(words.get("kind"), "kind"), **lists)


def single_to_proto(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parameters: Parameters,
    gradients: tuple[Wanted, Tensor] | None = None,
) -> pb.Convolution:
    """A request for one convolution, as `convolution_to_proto`; what its gradients do not need is omitted."""
    layer = pb.Layer(definition=definition_to_proto(ConvolutionLayer(weight, bias, parameters)))
    message = convolution_to_proto(input, [layer], parameters, gradients)
    if gradients:
        layer, wanted = message.layers[0], gradients[0]
        if not wanted.input:
            layer.weight_source.omitted = True
        if not wanted.weight:
            message.input_source.omitted = True
        if bias is not None:
            layer.bias_source.omitted = True
    return message


def convolution_to_proto(
    input: Tensor,
    layers: Sequence[pb.Layer],
    parameters: Parameters,
    gradients: tuple[Wanted, Tensor] | None = None,
) -> pb.Convolution:
    """A request; its tensors have no sources, which stands for inline in the order of tensors. Of `parameters` only
    what is not a layer's own counts. `gradients` are those wanted in place of the output, and grad_output's header.
    """
    given: Mapping[str, Any] = parameters
    dtype = given.get("output_dtype")
    message = pb.Convolution(
        layers=layers,
        input=tensor_to_proto(input),
        output_dtype=FROM_DTYPE[dtypes.named(dtype, "output_dtype").name] if dtype is not None else _NO_DTYPE,
        overflow=OVERFLOW.write(given.get("overflow"), "overflow"),
        execution=execution_to_proto(parse_execution(parameters)),
    )
    if gradients:
        wanted, grad_output = gradients
        flags = {name: getattr(wanted, name) for name in ("input", "weight", "bias")}
        message.gradients.CopyFrom(pb.Gradients(grad_output=tensor_to_proto(grad_output), **flags))
    return message


def gradients_from_proto(message: pb.Convolution) -> tuple[Wanted, Tensor] | None:
    """The gradients that a request wants and grad_output's header; None for an output. Raises InvalidConvolution where
    it wants none of them, or gives no grad_output.
    """
    if not message.HasField("gradients"):
        return None
    given = message.gradients
    if not given.HasField("grad_output"):
        raise InvalidConvolution("gradients.grad_output is missing", "gradients.grad_output")
    return Wanted(given.input, given.weight, given.bias), tensor_from_proto(given.grad_output, "gradients.grad_output")


def steps_from_proto(
    message: pb.Convolution, held: Callable[[str], pb.LayerDefinition] = lambda _: pb.LayerDefinition()
) -> tuple[Step, ...]:
    """The steps of a request; `held` gives the definition of a digest. Raises InvalidConvolution naming the field, and
    what `held` raises.
    """
    if not 1 <= len(message.layers) <= MOST_LAYERS:
        raise InvalidConvolution(f"layers has {len(message.layers)} entries; there may be 1 to {MOST_LAYERS}", "layers")
    if not message.HasField("input"):
        raise InvalidConvolution("input is missing", "input")
    layers = [_layer_from_proto(i, layer, held, len(message.layers)) for i, layer in enumerate(message.layers)]
    common: dict[str, Any] = {"overflow": OVERFLOW.read(message.overflow, "overflow")}
    if message.output_dtype:
        common["output_dtype"] = tensor_from_proto(tensor_pb2.Tensor(dtype=message.output_dtype), "output").dtype
    steps = parse_stack(tensor_from_proto(message.input, "input"), layers, cast("Parameters", common))
    for i, (step, layer) in enumerate(zip(steps, message.layers, strict=True)):
        if isinstance(step, Pooling):
            _check_counts(layer.pooling, POOLING_LISTS, step.ndim, "the stack", f"layers[{i}].")
    return steps


def _layer_from_proto(i: int, layer: pb.Layer, held: Callable[[str], pb.LayerDefinition], count: int) -> Layer:
    kind = layer.WhichOneof("kind")
    if kind is None:
        raise InvalidConvolution(f"layers[{i}] is neither a definition, nor a digest, nor pooling", f"layers[{i}]")
    if kind == "pooling":
        return pooling_from_proto(layer.pooling, f"layers[{i}].")
    try:
        return definition_from_proto(held(layer.digest) if kind == "digest" else layer.definition)
    except InvalidConvolution as refusal:
        if count == 1 or refusal.field.startswith("layers["):
            raise
        raise InvalidConvolution(f"layers[{i}]: {refusal.message}", f"layers[{i}].{refusal.field}") from None
    except UnknownLayer as unknown:
        if count == 1:
            raise
        raise UnknownLayer(f"layers[{i}]: {unknown.message}", unknown.digest) from None


def definition_from_proto(definition: pb.LayerDefinition) -> ConvolutionLayer:
    """A convolution's parameters and the headers of its weights. Raises InvalidConvolution naming the field."""
    if not definition.HasField("weight"):
        raise InvalidConvolution("weight is missing", "weight")
    given = parameters_from_proto(definition.parameters)
    ndim = len(definition.weight.shape) - 2
    if ndim in (1, 2, 3):
        _check_counts(definition.parameters, LISTS, ndim, "the weight")
    given["activation"] = cast("Any", ACTIVATION.read(definition.activation, "activation"))
    bias = tensor_from_proto(definition.bias, "bias") if definition.HasField("bias") else None
    return ConvolutionLayer(tensor_from_proto(definition.weight, "weight"), bias, given)


def pooling_from_proto(message: pb.Pooling, path: str) -> PoolingParameters:
    """The words of a pooling as callers write them. Raises InvalidConvolution for what is no word."""
    given: dict[str, Any] = {
        name: entries(getattr(message, name), path + name) for name in POOLING_LISTS if getattr(message, name)
    }
    return cast("PoolingParameters", {"kind": POOLING_KIND.read(message.kind, f"{path}kind"), **given})


def _check_counts(message: Any, names: Sequence[str], ndim: int, whose: str, path: str = "") -> None:  # noqa: ANN401 - of two kinds
    """A message spreads nothing: that is for those who write it."""
    for name in names:
        count = len(getattr(message, name))
        if count not in (0, ndim):
            text = f"{path}{name} has {count} entries; {whose} has {ndim} spatial dimensions"
            raise InvalidConvolution(text, f"{path}{name}")
