"""Stacks: convolutions and pooling one after the other, from callers' words to fully resolved steps. Each layer's
output, rounded once to the input's dtype, is the next one's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.operation import Tensor
from convolver.core.parameters import Layout, Parameters
from convolver.core.parse import parse
from convolver.core.pooling import Pooling, PoolingParameters, parse_pooling

MOST_LAYERS = 1024
"""Of one request: receptive fields take time that grows with the square of the layers."""

Step = Geometry | Pooling


class ConvolutionLayer(NamedTuple):
    """A convolution of a stack: the headers of its weights, and its parameters, activation included."""

    weight: Tensor
    bias: Tensor | None
    parameters: Parameters


Layer = ConvolutionLayer | PoolingParameters


def parse_stack(input: Tensor, layers: Sequence[Layer], common: Parameters) -> tuple[Step, ...]:
    """The steps of a stack. `common` are `overflow`, for each convolution, and `output_dtype`, for the last layer.

    Raises InvalidConvolution naming the layer (`layers[2].weight.shape`), the rule and both shapes; a single
    convolution is named as such (`weight.shape`).
    """
    if not 1 <= len(layers) <= MOST_LAYERS:
        raise InvalidConvolution(f"layers has {len(layers)} entries; there may be 1 to {MOST_LAYERS}", "layers")
    ndim, layout = _ndim(input, layers), _layout(layers)
    _check_ranks(layers, ndim)
    steps: list[Step] = []
    for i, layer in enumerate(layers):
        given: dict[str, Any] = {**common}
        if i < len(layers) - 1:
            given.pop("output_dtype", None)
        fed = steps[-1].output if steps else input
        with _naming(i, layer, fed, alone=len(layers) == 1):
            steps.append(_step(fed, layer, given, ndim, layout))
    return tuple(steps)


def is_stack(layers: Sequence[Layer]) -> bool:
    """Whether these are anything else than a single convolution."""
    return len(layers) != 1 or not isinstance(layers[0], ConvolutionLayer)


def _step(input: Tensor, layer: Layer, common: Mapping[str, Any], ndim: int, layout: Layout) -> Step:
    if isinstance(layer, ConvolutionLayer):
        parameters = cast("Parameters", {**layer.parameters, **common})
        return Geometry.of(parse(input, layer.weight, layer.bias, parameters))
    if not 1 <= ndim <= 3:
        raise InvalidConvolution(f"it has {ndim} spatial dimensions; pooling takes 1, 2 or 3", "input.shape")
    return parse_pooling(input, layer, ndim=ndim, layout=layout, output_dtype=common.get("output_dtype"))


def _ndim(input: Tensor, layers: Sequence[Layer]) -> int:
    """Spatial dimensions: those of the first weight; of pooling alone its lists', and else a batched input's."""
    for layer in layers:
        if isinstance(layer, ConvolutionLayer):
            return len(layer.weight.shape) - 2
    for layer in cast("Sequence[PoolingParameters]", layers):
        for value in (layer.get("kernel"), layer.get("output_size")):
            if isinstance(value, Sequence) and 1 <= len(value) <= 3:
                return len(value)
    return len(input.shape) - 2


def _check_ranks(layers: Sequence[Layer], ndim: int) -> None:
    """Raises InvalidConvolution where weights differ in rank: a batch would be taken for channels, or the reverse."""
    for i, layer in enumerate(layers):
        if isinstance(layer, ConvolutionLayer) and len(layer.weight.shape) - 2 != ndim:
            shape = layer.weight.shape
            text = (
                f"layers[{i}].weight {shape} has {len(shape) - 2} spatial dimensions, but the layers before have {ndim}"
            )
            raise InvalidConvolution(text, f"layers[{i}].weight.shape")


def _layout(layers: Sequence[Layer]) -> Layout:
    """The one layout of all convolutions. Raises InvalidConvolution where there are two."""
    first: Layout | None = None
    for i, layer in enumerate(layers):
        if isinstance(layer, ConvolutionLayer):
            layout = layer.parameters.get("layout") or "channels_first"
            first = first or layout
            if layout != first:
                message = f"layers[{i}].layout is {layout!r}, but the layers before are {first!r}; a stack has one"
                raise InvalidConvolution(message, f"layers[{i}].layout")
    return first or "channels_first"


@contextmanager
def _naming(i: int, layer: Layer, input: Tensor, *, alone: bool) -> Iterator[None]:
    """Refusals name the layer, and the shapes that met in it."""
    try:
        yield
    except InvalidConvolution as refusal:
        if alone and isinstance(layer, ConvolutionLayer):
            raise
        origin = f"the output of layers[{i - 1}]" if i else "the input"
        what = f"weight {layer.weight.shape}" if isinstance(layer, ConvolutionLayer) else "pooling"
        text = f"layers[{i}] ({what}) takes {origin}, {input.dtype} {input.shape}: {refusal.message}"
        raise InvalidConvolution(text, f"layers[{i}].{refusal.field}".rstrip(".")) from None
