"""The gradients of a convolution with respect to its input, weight and bias, planned from integers: which are wanted,
their headers, their costs, and the convolutions of other shapes that they are.

With the output y = conv(x, w) + b and a real scalar whose gradient with respect to y is g, the gradients are sums of
products again (Dumoulin and Visin, arXiv 1603.07285, section 4). Complex ones follow torch's convention: the gradient
is the direction in which the scalar grows the fastest, so the factors beside g are conjugated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from convolver.core import dtypes, methods
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry, dilated
from convolver.core.operation import Operation, Tensor


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which gradients are wanted: at least one. Raises InvalidConvolution for none."""

    input: bool
    weight: bool
    bias: bool

    def __post_init__(self) -> None:
        if not (self.input or self.weight or self.bias):
            raise InvalidConvolution("gradients asks for none of input, weight and bias", "gradients")


def check(geometry: Geometry, grad_output: Tensor) -> None:
    """Raises InvalidConvolution where the operation has no gradients, or grad_output is not as its output is."""
    op, expected = geometry.operation, geometry.output
    if dtypes.TABLE[op.dtype].exact:
        raise InvalidConvolution(f"input has dtype {op.dtype}, and integers have no gradients", "input.dtype")
    if op.activation != "none":
        raise InvalidConvolution(
            f"activation is {op.activation!r}; the gradients of a single convolution are those without one",
            "activation",
        )
    if grad_output.dtype != expected.dtype:
        raise InvalidConvolution(
            f"grad_output has dtype {grad_output.dtype}, but the output has {expected.dtype}",
            "gradients.grad_output.dtype",
        )
    if grad_output.shape != expected.shape:
        raise InvalidConvolution(
            f"grad_output has shape {grad_output.shape}, but the output has {expected.shape}",
            "gradients.grad_output.shape",
        )


def outputs(geometry: Geometry, wanted: Wanted) -> tuple[tuple[str, Tensor], ...]:
    """Names and headers of the gradients, in the order of an answer: of the operation's dtype, in its layout."""
    op = geometry.operation
    everything = (
        (wanted.input, "grad_input", op.input_shape),
        (wanted.weight, "grad_weight", op.weight_shape),
        (wanted.bias, "grad_bias", (geometry.out_channels,)),
    )
    return tuple((name, Tensor(op.dtype, shape)) for asked, name, shape in everything if asked)


def macs(geometry: Geometry, wanted: Wanted) -> int:
    """Multiply-accumulates: as many as forward for the input and for the weight, none for the bias."""
    return geometry.macs * (wanted.input + wanted.weight)


def accumulator(op: Operation) -> dtypes.DType:
    """The type of the sums."""
    return dtypes.accumulator(dtypes.TABLE[op.dtype], dtypes.TABLE[op.output_dtype])


def source_size(geometry: Geometry) -> tuple[int, ...]:
    """Spatial size of what the kernel slides over: the padded input, or transposed the uncropped output."""
    return methods.scatter_size(geometry) if geometry.operation.transposed else geometry.padded_size


def correlation(geometry: Geometry) -> Geometry:
    """The forward convolution without padding, of the same products: its input is the padded input, and its output the
    output; transposed, its input is the output before cropping, and its output the input. Batch groups have become
    groups: items that meet other kernels are other channels.
    """
    op, ones, none = geometry.operation, (1,) * geometry.ndim, (0,) * geometry.ndim
    groups, batch = op.groups * op.batch_groups, geometry.output_batch
    ends = (geometry.in_channels * op.batch_groups, geometry.out_channels)
    source, rows = reversed(ends) if op.transposed else ends
    size = geometry.input_size if op.transposed else geometry.output_size
    wide = accumulator(op).name
    forward = Operation(
        dtype=wide,
        output_dtype=wide,
        input_shape=(batch, source, *source_size(geometry)),
        weight_shape=(rows, source // groups, *geometry.kernel),
        has_bias=False,
        stride=op.stride,
        dilation=op.dilation,
        input_dilation=ones,
        pad_begin=none,
        pad_end=none,
        groups=groups,
    )
    return Geometry(forward, batch, source, rows, source_size(geometry), geometry.kernel, geometry.extents, size)


def input_gradient(geometry: Geometry) -> Geometry:
    """The convolution of the rows of `correlation`, which is the gradient with respect to the dilated input; to the
    padded one for padding modes that copy elements. It is the transposed convolution with the weight as it is,
    conjugated; where all strides are 1 the forward one, which is cheaper, with the weight turned by 180 degrees and its
    channels exchanged. For a transposed convolution it is the correlation, with the weight as it is.
    """
    op, made = geometry.operation, correlation(geometry)
    if op.transposed:
        return made
    begin, end, size = made.operation.pad_begin, made.operation.pad_end, geometry.padded_size
    unread = tuple((p - e) % s for p, e, s in zip(size, geometry.extents, op.stride, strict=True))
    if not copies_elements(op):
        begin, end, size = op.pad_begin, op.pad_end, tuple(map(dilated, geometry.input_size, op.input_dilation))
    adjoint = replace(made.operation, input_shape=made.canonical_output, pad_begin=begin, pad_end=end)
    if all(step == 1 for step in op.stride):
        adjoint = _turned(adjoint, made)
    else:
        adjoint = replace(adjoint, transposed=True, output_padding=unread)
    sources, rows = made.in_channels, made.out_channels
    return Geometry(adjoint, made.batch, rows, sources, made.output_size, made.kernel, made.extents, size)


def copies_elements(op: Operation) -> bool:
    """Whether its padding mode reads elements of the input."""
    return op.padding_mode not in ("zeros", "constant")


def _turned(op: Operation, made: Geometry) -> Operation:
    """The transposed convolution of stride 1 with these paddings as a forward one."""
    begin, end = (
        tuple(e - 1 - amount for e, amount in zip(made.extents, amounts, strict=True))
        for amounts in (op.pad_begin, op.pad_end)
    )
    per_group = made.out_channels // op.groups
    return replace(op, weight_shape=(made.in_channels, per_group, *made.kernel), pad_begin=begin, pad_end=end)


def exchanges(correlation: Geometry) -> bool:
    """Whether the weight's gradient is better summed over the windows of the rows, which are fewer channels, than over
    those of the source: by the convolution of its input_gradient.
    """
    kernels = correlation.out_channels // correlation.operation.groups
    return (
        all(step == 1 for step in correlation.operation.stride)
        and 2 * kernels <= correlation.channels_per_group
        and prod(correlation.input_size) <= 2 * prod(correlation.output_size)
        and prod(correlation.kernel) > 1
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Groups by items by rows of the first spatial dimension: what one matrix product of the weight's gradient sums."""

    groups: int
    items: int
    rows: int


def weight_block(correlation: Geometry, itemsize: int) -> Block:
    """The largest block whose columns and rows fit COLUMNS_BYTES (or the gradient of a group, if that is larger: it is
    added to after each block): whole groups, or items of one group, or rows of one item; at least one row.
    """
    height, groups = correlation.output_size[0], correlation.operation.groups
    kernels = correlation.out_channels // groups
    limit = max(methods.COLUMNS_BYTES, kernels * correlation.sum_length * itemsize)
    row = (correlation.sum_length + kernels) * prod(correlation.output_size[1:]) * itemsize
    item = row * height
    return Block(
        min(groups, max(1, limit // (item * correlation.batch))),
        min(correlation.batch, max(1, limit // item)),
        min(height, max(1, limit // row)),
    )


def workspace_bytes(geometry: Geometry, wanted: Wanted) -> int:
    """Bytes that the reference allocates beside input, weight, grad_output and the gradients, at most."""
    if not geometry.output_batch:
        return 0
    through_input = _input_bytes(geometry) if wanted.input else 0
    through_weight = _weight_bytes(geometry) if wanted.weight else 0
    return _held_bytes(geometry, wanted) + max(through_input, through_weight)


def _held_bytes(geometry: Geometry, wanted: Wanted) -> int:
    """grad_output in the accumulator's type, and of a transposed convolution before cropping."""
    op, wide = geometry.operation, accumulator(geometry.operation)
    elements = prod(geometry.canonical_output) if wide.name != op.output_dtype else 0
    moved = any(op.pad_begin) or any(op.pad_end) or any(op.output_padding)
    if op.transposed and moved and (wanted.input or wanted.weight):
        elements += methods.scatter_elements(geometry)
    return elements * wide.itemsize


def _input_bytes(geometry: Geometry) -> int:
    """The weight turned; what the convolution takes; and its result, where that is not the gradient itself (which is
    not there yet), with the borders of a dimension in three forms.
    """
    op, backward, size = geometry.operation, input_gradient(geometry), accumulator(geometry.operation).itemsize
    result = prod(backward.canonical_output)
    summed, turned = methods.workspace_bytes(backward), 2 * prod(op.weight_shape) * size
    regrouped = op.batch_groups > 1
    if not (regrouped or result != prod(op.canonical_input) or _is_copied(op, geometry.in_channels)):
        return turned + summed
    made = prod(op.input_shape) * dtypes.TABLE[op.dtype].itemsize
    folded = max(0, regrouped * result * size - made, 3 * _border_elements(backward, op) * size - made)
    return turned + result * size + max(summed - made, folded)


def _border_elements(backward: Geometry, op: Operation) -> int:
    """Elements of the borders of that dimension in which they are most."""
    if not copies_elements(op):
        return 0
    pairs = zip(op.pad_begin, op.pad_end, backward.output_size, strict=True)
    shares = (prod(backward.canonical_output) // n * (max(0, begin) + max(0, end)) for begin, end, n in pairs)
    return max(shares)


def _is_copied(op: Operation, channels: int) -> bool:
    """Whether sums become a gradient by being rounded or turned round."""
    return accumulator(op).name != op.dtype or (op.layout == "channels_last" and channels > 1)


def _weight_bytes(geometry: Geometry) -> int:
    """The input in the accumulator's type, regrouped and padded; the rows padded, if it is they that have windows; the
    columns and rows of a block, and its sums beside all sums, unless those are the gradient itself.
    """
    op, wide, made = geometry.operation, accumulator(geometry.operation), correlation(geometry)
    elements = prod(op.input_shape) * ((wide.name != op.dtype) + (op.batch_groups > 1))
    if methods.needs_padded_copy(geometry):
        elements += made.batch * made.in_channels * prod(made.input_size)
    if exchanges(made):
        made = input_gradient(made)
        elements += made.batch * made.in_channels * prod(made.padded_size) + prod(op.weight_shape)
    block, kernels = weight_block(made, wide.itemsize), made.out_channels // made.operation.groups
    places = block.items * block.rows * prod(made.output_size[1:])
    conjugated = kernels * (wide.kind == "complex")
    elements += block.groups * (places * (made.sum_length + kernels + conjugated) + kernels * made.sum_length)
    elements += prod(op.weight_shape) * (wide.kind == "complex" or op.flip or _is_copied(op, 2))
    return elements * wide.itemsize
