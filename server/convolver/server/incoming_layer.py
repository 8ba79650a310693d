"""A layer on its way in: its definition checked and its size known before any of its data is taken."""

from __future__ import annotations

from operator import add, sub
from typing import TYPE_CHECKING, Any, cast

from convolver.core.geometry import extent
from convolver.core.operation import LARGEST, Operation, Tensor
from convolver.core.parse import parse
from convolver.core.request_codec import definition_from_proto
from convolver.core.stack_plan import tensor_bytes
from convolver.server.incoming import IncomingTensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from convolver.core.backends import Array
    from convolver.core.parameters import Parameters
    from convolver.core.stack import ConvolutionLayer
    from convolver.v1 import convolution_pb2 as pb


class IncomingLayer:
    """The bytes of a layer's weight, then bias, as they come.

    `definition` is the serialised LayerDefinition, `header` the same, parsed; `reserve` is given `bytes`, those of the
    whole layer, before memory is taken for them. Raises InvalidConvolution as `checked`, and what `reserve` raises.
    """

    def __init__(self, definition: bytes, header: pb.LayerDefinition, reserve: Callable[[int], None]) -> None:
        layer = checked(definition_from_proto(header))
        self.definition = definition
        tensors = {"weight": layer.weight} | ({"bias": layer.bias} if layer.bias else {})
        self.bytes = len(definition) + sum(map(tensor_bytes, tensors.values()))
        reserve(self.bytes)
        self._data = IncomingTensors(tensors)

    def take(self, data: memoryview) -> None:
        """The next bytes. Raises InvalidConvolution for more than there are."""
        self._data.take(data)

    @property
    def come(self) -> str:
        """How much is there, for people."""
        return f"{self._data.come} of {self._data.bytes} bytes"

    def arrays(self) -> tuple[Array, Array | None]:
        """(weight, bias). Raises InvalidConvolution where bytes are missing, or a bool is neither 0 nor 1."""
        arrays = self._data.arrays()
        return arrays["weight"], arrays.get("bias")


def checked(layer: ConvolutionLayer) -> ConvolutionLayer:
    """The layer, whose lists have an entry for each dimension. Raises InvalidConvolution naming the field where a rule
    is broken whatever the input.
    """
    given: dict[str, Any] = {**layer.parameters}
    target = given.pop("output_size", None)
    sizes = (1,) * (len(layer.weight.shape) - 2)
    if given.get("transposed") and target is not None:
        op = parse(_stand_in(layer, sizes), layer.weight, layer.bias, cast("Parameters", given))
        by_word = given.get("padding", "valid") in ("same", "same_lower")
        sizes = tuple(map(_size_of_same if by_word else _size_of_numbers, target, op.stride, _spare(op)))
    parse(_stand_in(layer, sizes), *layer)
    return layer


def _stand_in(layer: ConvolutionLayer, sizes: tuple[int, ...]) -> Tensor:
    """The header of an input that goes with the layer, if any does."""
    (dtype, shape), given = layer.weight, layer.parameters
    if not 3 <= len(shape) <= 5:
        return Tensor(dtype, ())
    last = given.get("layout") == "channels_last"
    first, second = (shape[-1], shape[-2]) if last else shape[:2]
    channels = _bounded(first if given.get("transposed") else second * given.get("groups", 1))
    items = _bounded(given.get("batch_groups", 1))
    return Tensor(dtype, (items, *sizes, channels) if last else (items, channels, *sizes))


def _spare(op: Operation) -> Iterable[int]:
    """Padding, both ends, less the kernel's extent, per dimension."""
    extents = map(extent, op.canonical_weight[2:], op.dilation)
    return map(sub, map(add, op.pad_begin, op.pad_end), extents)


def _size_of_same(target: int, stride: int, _: int) -> int:
    """The only input size that a transposed "same" may turn into `target`."""
    return _bounded(-(-target // stride))


def _size_of_numbers(target: int, stride: int, spare: int) -> int:
    """The largest input size that a transposed convolution, padded by numbers, turns into `target` or less."""
    return _bounded((target + spare) // stride + 1)


def _bounded(size: int) -> int:
    """A dimension in its bounds: where it is not, it is the layer that is refused, not its stand-in."""
    return min(max(size, 1), LARGEST)
