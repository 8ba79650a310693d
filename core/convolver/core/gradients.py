"""The gradients of a convolution with respect to its input, weight and bias, planned from integers: which are wanted,
their headers, and what they cost.

Complex ones follow torch's convention: the gradient is the direction in which the (real) scalar grows the fastest, so
the factors beside grad_output are conjugated; with respect to reals it is the real part of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from convolver.core import dtypes, methods, torch_memory
from convolver.core.adjoint import (
    as_forward,
    copies_elements,
    correlation,
    exchanges,
    has_unit_stride,
    input_gradient,
    weight_block,
)
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.operation import Operation, Tensor

CHANNEL_BLOCK = 16
"""oneDNN lays channels out in blocks of so many."""

LARGEST_KERNEL = 14
"""What oneDNN's own kernels take; for larger ones it computes by im2col of an item."""

COLUMNS_LIMIT = 1 << 28
"""Elements of im2col that oneDNN allows itself; of more it makes do with a tenth of that."""

ATENS_OWN = 20480
"""Elements of a single item's first rows up to which ATen keeps float32 from oneDNN."""


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
    op = geometry.operation
    if dtypes.TABLE[op.dtype].exact:
        raise InvalidConvolution(f"input has dtype {op.dtype}, and integers have no gradients", "input.dtype")
    if op.activation != "none":
        raise InvalidConvolution(
            f"activation is {op.activation!r}; the gradients of a single convolution are those without one",
            "activation",
        )
    check_header(geometry.output, grad_output)


def check_header(expected: Tensor, grad_output: Tensor) -> None:
    """Raises InvalidConvolution where grad_output is not as the output is."""
    for name, given, right in zip(Tensor._fields, grad_output, expected, strict=True):
        if given != right:
            message = f"grad_output has {name} {given}, but the output has {right}"
            raise InvalidConvolution(message, f"gradients.grad_output.{name}")


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


def workspace_bytes(geometry: Geometry, wanted: Wanted) -> int:
    """Bytes that the reference allocates beside input, weight, grad_output and the gradients, at most."""
    if not geometry.output_batch:
        return 0
    through_input = _input_bytes(geometry, methods.workspace_bytes(_summed(geometry))) if wanted.input else 0
    through_weight = _weight_bytes(geometry) if wanted.weight else 0
    return _held_bytes(geometry, wanted) + max(through_input, through_weight)


def _summed(geometry: Geometry) -> Geometry:
    """The convolution that sums the input's gradient, of finite weights."""
    backward = input_gradient(geometry)
    return as_forward(backward) if has_unit_stride(backward.operation) else backward


def _held_bytes(geometry: Geometry, wanted: Wanted) -> int:
    """grad_output in the accumulator's type, and of a transposed convolution before cropping."""
    op, wide = geometry.operation, geometry.operation.accumulator
    elements = prod(geometry.canonical_output) if wide.name != op.output_dtype else 0
    moved = any(op.pad_begin) or any(op.pad_end) or any(op.output_padding)
    if op.transposed and moved and (wanted.input or wanted.weight):
        elements += methods.scatter_elements(geometry)
    return elements * wide.itemsize


def _input_bytes(geometry: Geometry, summed: int) -> int:
    """The weight's copies; what the convolution takes, `summed`; and its result, where that is not the gradient itself
    (which is not there yet), with the borders of a dimension in three forms.
    """
    op, backward, wide = geometry.operation, input_gradient(geometry), geometry.operation.accumulator
    result, regrouped = prod(backward.canonical_output) * wide.itemsize, op.batch_groups > 1
    turned = has_unit_stride(backward.operation) and not methods.is_linear(geometry)
    copies = (wide.name != op.dtype) + (wide.kind == "complex") + turned
    weight = prod(op.weight_shape) * wide.itemsize * copies
    if not (regrouped or backward.output_size != geometry.input_size or _is_copied(op, geometry.in_channels)):
        return weight + summed
    made = prod(op.input_shape) * dtypes.TABLE[op.dtype].itemsize
    folded = max(regrouped * result, 3 * _border_elements(backward, op) * wide.itemsize)
    return weight + result + max(0, summed - made, folded - made)


def _border_elements(backward: Geometry, op: Operation) -> int:
    """Elements of the borders of that dimension in which they are most."""
    if not copies_elements(op):
        return 0
    pairs = zip(op.pad_begin, op.pad_end, backward.output_size, strict=True)
    shares = (prod(backward.canonical_output) // n * (max(0, begin) + max(0, end)) for begin, end, n in pairs)
    return max(shares)


def _is_copied(op: Operation, channels: int) -> bool:
    """Whether sums become a gradient by being rounded or turned round."""
    return op.accumulator.name != op.dtype or (op.layout == "channels_last" and channels > 1)


def _weight_bytes(geometry: Geometry) -> int:
    """The input in the accumulator's type, regrouped and padded; the rows padded, if it is they that have windows; the
    columns and rows of a block, and its sums beside all sums, unless those are the gradient itself.
    """
    op, wide, made = geometry.operation, geometry.operation.accumulator, correlation(geometry)
    elements = prod(op.input_shape) * ((wide.name != op.dtype) + (op.batch_groups > 1))
    if methods.needs_padded_copy(geometry):
        elements += made.batch * made.in_channels * prod(made.input_size)
    if exchanges(made):
        made = as_forward(input_gradient(made))
        elements += made.batch * made.in_channels * prod(made.padded_size) + prod(op.weight_shape)
    block, kernels = weight_block(made, wide.itemsize), made.out_channels // made.operation.groups
    places = block.items * block.rows * prod(made.output_size[1:])
    conjugated = kernels * (wide.kind == "complex")
    elements += block.groups * (places * (made.sum_length + kernels + conjugated) + kernels * made.sum_length)
    elements += prod(op.weight_shape) * (wide.kind == "complex" or op.flip or _is_copied(op, 2))
    return elements * wide.itemsize


def torch_workspace_bytes(geometry: Geometry, wanted: Wanted, threads: int = 1) -> int:
    """Bytes that torch allocates on a CPU beside input, weight, grad_output and the gradients, by and large at most."""
    if not geometry.output_batch:
        return 0
    op, wide = geometry.operation, geometry.operation.accumulator
    total, converted = _held_bytes(geometry, wanted), wide.name != op.dtype
    if converted:  # the input, and the gradients until they are rounded
        total += wide.itemsize * wanted.weight * prod(op.input_shape)
        total += wide.itemsize * sum(prod(header.shape) for _, header in outputs(geometry, wanted))
    summed = torch_memory.workspace_bytes(_summed(geometry), threads)
    through_input = _input_bytes(geometry, summed) if wanted.input else 0
    through_weight = _torch_weight_bytes(geometry, threads) if wanted.weight else 0
    return total + max(through_input, through_weight)


def _torch_weight_bytes(geometry: Geometry, threads: int) -> int:
    """The padded input, then what convolution_backward takes; complex numbers as twice as many real items, for each
    part anew.
    """
    op, wide, made = geometry.operation, geometry.operation.accumulator, correlation(geometry)
    source, rows = prod(made.operation.input_shape), prod(made.canonical_output)
    own_padding = op.padding_mode == "zeros" and op.pad_begin == op.pad_end and min(op.pad_begin) >= 0
    padded = not own_padding or any(step > 1 for step in op.input_dilation)
    copied = (padded and methods.needs_padded_copy(geometry)) or op.batch_groups > 1
    elements, parts = source * copied + prod(op.weight_shape), 1
    if wide.kind == "complex":
        elements, parts = elements + source + rows + prod(op.weight_shape), 2
    real = wide.itemsize // parts
    sums = _by_columns if wide.bits == 53 else _by_onednn
    return elements * wide.itemsize + parts * sums(made, threads) * real


def _by_columns(made: Geometry, _: int) -> int:
    """Elements of torch's own im2col: of the whole batch, or of one item with dilation, group by group."""
    op, kernels = made.operation, prod(made.operation.weight_shape)
    if max(made.kernel) == max(op.stride) == 1:
        return kernels
    columns = made.sum_length * prod(made.output_size) * (1 if max(op.dilation) > 1 else made.batch)
    parts = (prod(op.input_shape) + prod(made.canonical_output)) // op.groups
    return kernels + columns + (parts if op.groups > 1 else 0)


def _by_onednn(made: Geometry, threads: int) -> int:
    """Elements of oneDNN's: operands in blocks of channels (few channels of the source as they are) or columns, and
    sums for each thread.
    """
    op, (sources, rows) = made.operation, (made.in_channels, made.out_channels)
    of_source, of_rows = prod(op.input_shape), prod(made.canonical_output)
    if op.groups in (1, sources):
        plain = sources < CHANNEL_BLOCK and op.groups == 1 and max(made.kernel) > 1
        of_source = 0 if plain else of_source // sources * _in_blocks(sources)
        of_rows = of_rows // rows * _in_blocks(rows)
    columns = made.sum_length * prod(made.output_size)
    if made.batch == op.groups == 1 and sources * prod(made.input_size[:2]) <= ATENS_OWN:
        beside = columns
    elif max(made.kernel) > LARGEST_KERNEL:
        beside = columns if columns <= COLUMNS_LIMIT else COLUMNS_LIMIT // 10
    else:
        beside = 0
    return max(of_source + of_rows, beside) + (threads + 1) * prod(op.weight_shape)


def _in_blocks(channels: int) -> int:
    return -(-channels // CHANNEL_BLOCK) * CHANNEL_BLOCK
