"""Shapes and costs of a convolution, from integers alone. Formulas: Dumoulin and Visin, "A guide to convolution
arithmetic for deep learning" (arXiv 1603.07285), extended by asymmetric padding, dilation of the input and groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from convolver.core import dtypes
from convolver.core.errors import InvalidConvolution
from convolver.core.operation import LARGEST, Operation, Tensor


def extent(kernel: int, dilation: int) -> int:
    """Elements that a dilated kernel spans: e = dilation*(kernel-1)+1."""
    return dilation * (kernel - 1) + 1


def dilated(size: int, input_dilation: int) -> int:
    """Elements that a dilated input spans: L = (size-1)*input_dilation+1, 0 for an empty one."""
    return (size - 1) * input_dilation + 1 if size else 0


def forward_size(span: int, stride: int, kernel_extent: int, padding: int) -> int:
    """floor((L + padding - e) / stride) + 1, where padding is the sum of both ends; below 1 when the kernel does not
    fit.
    """
    return (span + padding - kernel_extent) // stride + 1


def transposed_size(size: int, stride: int, kernel_extent: int, padding: int, output_padding: int) -> int:
    """(size-1)*stride - padding + e + output_padding."""
    return (size - 1) * stride - padding + kernel_extent + output_padding


@dataclass(frozen=True, slots=True)
class Geometry:
    """What follows from an Operation: canonical sizes, the output's shape, the number of products.

    `batch` counts the input's items and `output_batch` the output's (batch / batch_groups); `channels_per_group` is
    C/groups.
    """

    operation: Operation
    batch: int
    in_channels: int
    out_channels: int
    input_size: tuple[int, ...]
    kernel: tuple[int, ...]
    extents: tuple[int, ...]
    output_size: tuple[int, ...]

    @classmethod
    def of(cls, operation: Operation) -> Geometry:
        """The geometry of an operation.

        Raises InvalidConvolution where the kernel is larger than the padded input, a dimension of the output is above
        2^31-1 or a tensor above 2^63-1 bytes.
        """
        batch, channels, *size = operation.canonical_input
        kernel = operation.canonical_weight[2:]
        extents = tuple(map(extent, kernel, operation.dilation))
        output = _output_size(operation, tuple(size), kernel, extents)
        made = cls(operation, batch, channels, operation.out_channels, tuple(size), kernel, extents, output)
        _refuse_overflow(made)
        return made

    @property
    def ndim(self) -> int:
        """Spatial dimensions."""
        return len(self.kernel)

    @property
    def channels_per_group(self) -> int:
        """Input channels that one output channel sees."""
        return self.in_channels // self.operation.groups

    @property
    def output_batch(self) -> int:
        """Items of the output."""
        return self.batch // self.operation.batch_groups

    @property
    def padded_size(self) -> tuple[int, ...]:
        """The input's size once it is dilated, cropped and padded."""
        op = self.operation
        spans = map(dilated, self.input_size, op.input_dilation)
        return tuple(span + begin + end for span, begin, end in zip(spans, op.pad_begin, op.pad_end, strict=True))

    @property
    def canonical_output(self) -> tuple[int, ...]:
        """(N/batch_groups, O, *output_size)."""
        return (self.output_batch, self.out_channels, *self.output_size)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The output's shape in the operation's layout, without a batch dimension where the input has none."""
        batch, channels, *size = self.canonical_output
        shape = (channels, *size) if self.operation.layout == "channels_first" else (*size, channels)
        return (batch, *shape) if self.operation.batched else shape

    @property
    def input(self) -> Tensor:
        """The input's header."""
        return Tensor(self.operation.dtype, self.operation.input_shape)

    @property
    def output(self) -> Tensor:
        """The output's header."""
        return Tensor(self.operation.output_dtype, self.output_shape)

    @property
    def sum_length(self) -> int:
        """Products in the longest sum, the K of the tolerance: C/groups * prod(kernel)."""
        return self.channels_per_group * prod(self.kernel)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the direct sum; padding counts, bias and activation do not."""
        if self.operation.transposed:
            per_input = self.out_channels // self.operation.groups * prod(self.kernel)
            return self.batch * self.in_channels * prod(self.input_size) * per_input
        return prod(self.canonical_output) * self.sum_length

    @property
    def input_bytes(self) -> int:
        """Bytes of input, weight and bias."""
        op = self.operation
        elements = prod(op.input_shape) + prod(op.weight_shape) + (self.out_channels if op.has_bias else 0)
        return elements * dtypes.TABLE[op.dtype].itemsize

    @property
    def output_bytes(self) -> int:
        """Bytes of the output."""
        return prod(self.output_shape) * dtypes.TABLE[self.operation.output_dtype].itemsize

    @property
    def parameter_count(self) -> int:
        """Elements of weight and bias."""
        return prod(self.operation.weight_shape) + (self.out_channels if self.operation.has_bias else 0)


def _refuse_overflow(made: Geometry) -> None:
    """An empty dimension counts as 1: NumPy too refuses an empty array of huge other dimensions."""
    op = made.operation
    tensors = (("input", op.dtype, op.input_shape), ("weight", op.dtype, op.weight_shape), ("output", *made.output))
    for name, dtype, shape in tensors:
        size = prod(max(1, length) for length in shape) * dtypes.TABLE[dtype].itemsize
        if size >= 2**63:
            raise InvalidConvolution(
                f"{name} {shape} of {dtype} takes {size} bytes, above 2^63-1",
                f"{'input' if name == 'output' else name}.shape",
            )


def _output_size(
    op: Operation, size: tuple[int, ...], kernel: tuple[int, ...], extents: tuple[int, ...]
) -> tuple[int, ...]:
    output = []
    for d, (length, reach) in enumerate(zip(size, extents, strict=True)):
        begin, end = op.pad_begin[d], op.pad_end[d]
        if op.transposed:
            one = transposed_size(length, op.stride[d], reach, begin + end, op.output_padding[d])
        else:
            span = dilated(length, op.input_dilation[d])
            _refuse_empty(op, d, length, span)
            one = forward_size(span, op.stride[d], reach, begin + end)
        if one < 1:
            raise InvalidConvolution(
                _too_small(op, d, length, kernel[d], reach, one), f"input.shape[{spatial_axis(op, d)}]"
            )
        if one > LARGEST:
            raise InvalidConvolution(
                f"output dimension {d} would be {one}, above 2^31-1", f"input.shape[{spatial_axis(op, d)}]"
            )
        output.append(one)
    return tuple(output)


def spatial_axis(op: Operation, d: int) -> int:
    """The index in the input's shape of spatial dimension d."""
    return d + op.batched + (op.layout == "channels_first")


def _refuse_empty(op: Operation, d: int, length: int, span: int) -> None:
    """Modes that copy elements need one that is left; an empty dimension may still be padded by constants."""
    begin, end = op.pad_begin[d], op.pad_end[d]
    left = span + min(begin, 0) + min(end, 0)
    constant = op.padding_mode in ("zeros", "constant")
    if left > 0 or (length == 0 and constant and begin >= 0 and end >= 0):
        return
    why = (
        f"padding ({begin}, {end}) crops all of" if span else f"padding_mode {op.padding_mode!r} has nothing to copy in"
    )
    raise InvalidConvolution(
        f"{why} dimension {d} of the input, which is {span} long", f"input.shape[{spatial_axis(op, d)}]"
    )


def _too_small(op: Operation, d: int, length: int, kernel: int, reach: int, one: int) -> str:
    begin, end = op.pad_begin[d], op.pad_end[d]
    if op.transposed:
        return f"output dimension {d} would be {one}: padding ({begin}, {end}) crops all of it"
    padded = dilated(length, op.input_dilation[d]) + begin + end
    spans = f" spanning {reach} with dilation {op.dilation[d]}" if reach != kernel else ""
    is_given = f"which is {padded} ({length} with padding ({begin}, {end}))"
    return f"kernel dimension {d} is {kernel}{spans}, larger than the padded input, {is_given}"
