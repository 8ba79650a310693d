"""How the reference back end will sum, decided from integers, with the bytes that it takes: one place for the plan and
for the run.
"""

from __future__ import annotations

from math import prod
from typing import Literal, NamedTuple

from convolver.core import dtypes
from convolver.core.geometry import Geometry

Method = Literal["linear", "pointwise", "ordered", "shift", "gemm", "scatter"]

COLUMNS_BYTES = 1 << 20
"""Columns of im2col, or products of a transposed convolution, that stand in memory at one time: about a second-level
cache. Several times as much would be returned to the system after each call, and fresh pages cost more than products.
"""

SHIFT_BYTES = 1 << 20
"""The same for "shift"."""

ORDERED_BYTES = 256 << 10
"""The block that "ordered" works on."""

PART_MACS = 1 << 30
"""Of one matrix product, which nothing interrupts: about 25 ms of floats."""

BLOCK_BYTES = 512 << 10
"""What borders, activations and roundings hold, at most: they work block by block."""

MOST_SHIFTED = 16
"""Kernels of a group up to which "shift" is the faster one, if they are not more than twice the group's channels."""


class Block(NamedTuple):
    """Items of the batch by groups by rows of the output's first spatial dimension."""

    items: int
    groups: int
    rows: int


class Columns(NamedTuple):
    """How windows of the input are copied. `offsets` along the kernel's first dimension share columns, which are
    therefore of `halo` rows more than the block; `row` counts the elements of one row of one group.
    """

    offsets: int
    halo: int
    row: int
    block: Block

    @property
    def elements(self) -> int:
        """Elements of a block's columns."""
        return self.block.items * self.block.groups * (self.block.rows + self.halo) * self.row


MANY_BLOCKS = 4
"""Blocks for each thread from which on it does not matter how many there are."""


def method(geometry: Geometry) -> Method:
    """scatter: a product per kernel offset, added where it belongs (transposed). linear: one matrix product of all
    items, where the kernel spans the input. pointwise: one matrix product for each item. gemm: im2col in blocks, then a
    matrix product (Chellapilla et al., 2006). shift: the same without the kernel's first dimension, and a product for
    each offset along that, for few kernels: copies less and adds more (MEC: Cho and Brand, 2017). ordered: a
    multiply-add for each kernel element in their order, for doubles of one channel: so a plain loop adds, and SciPy's
    ndimage, which cuts fractions off, is met to the last bit.
    """
    op, kernels = geometry.operation, kernels_per_group(geometry)
    if op.transposed:
        return "scatter"
    if is_linear(geometry):
        return "linear"
    if all(k == 1 for k in geometry.kernel) and all(s == 1 for s in op.stride):
        return "pointwise"
    if op.dtype == op.output_dtype == "float64" and geometry.channels_per_group == kernels == 1:
        return "ordered"
    few = kernels <= min(MOST_SHIFTED, 2 * geometry.channels_per_group)
    return "shift" if few and geometry.ndim > 1 and geometry.kernel[0] > 1 and op.stride[0] == 1 else "gemm"


def is_linear(geometry: Geometry) -> bool:
    """Whether the kernel spans the input and meets it once: what neural networks call a fully connected layer."""
    op = geometry.operation
    plain = not (op.transposed or needs_padded_copy(geometry)) and geometry.kernel == geometry.input_size
    alone = op.groups == op.batch_groups == 1 and max(geometry.in_channels, geometry.out_channels) > 1
    return plain and alone


def kernels_per_group(geometry: Geometry) -> int:
    """Output channels that see the same input channels."""
    return geometry.out_channels // all_groups(geometry)


def all_groups(geometry: Geometry) -> int:
    """Groups of channels, or of the batch: one of the two is 1."""
    return geometry.operation.groups * geometry.operation.batch_groups


def offsets(geometry: Geometry) -> int:
    """Offsets along the first dimension that share their columns: all for shift, else 1."""
    return geometry.kernel[0] if method(geometry) == "shift" else 1


def columns(geometry: Geometry, itemsize: int, threads: int = 1) -> Columns:
    """Blocks as large as their columns fit COLUMNS_BYTES or SHIFT_BYTES: whole items, or groups of one item, or rows of
    one group; at least one row, and as many as the halo. Smaller ones where that gives each thread as many.
    """
    shared, groups, height = offsets(geometry), all_groups(geometry), geometry.output_size[0]
    limit, halo = SHIFT_BYTES if shared > 1 else COLUMNS_BYTES, (shared - 1) * geometry.operation.dilation[0]
    row = geometry.sum_length // shared * prod(geometry.output_size[1:])
    group = row * (height + halo) * itemsize
    block = Block(
        min(geometry.output_batch, max(1, limit // max(1, group * groups))),
        min(groups, max(1, limit // max(1, group))),
        min(height, max(1, halo, limit // max(1, row * itemsize) - halo)),
    )
    return Columns(shared, halo, row, _balanced(geometry, block, threads, halo))


def _balanced(geometry: Geometry, block: Block, threads: int, least_rows: int = 1) -> Block:
    """Blocks of which each thread has as many, or many: smaller in the first dimension that allows it."""
    totals, counts = totals_of(geometry), _counts(geometry, block)
    if prod(counts) % threads == 0 or prod(counts) >= MANY_BLOCKS * threads:
        return block
    for name, total, count, least in zip(Block._fields, totals, counts, (1, 1, max(1, least_rows)), strict=True):
        size = -(-total // (-(-count // threads) * threads))
        if least <= size < getattr(block, name):
            return block._replace(**{name: size})
    return block


def _counts(geometry: Geometry, block: Block) -> list[int]:
    """Blocks along each dimension; none of an empty batch."""
    return [-(-total // max(1, size)) for total, size in zip(totals_of(geometry), block, strict=True)]


def totals_of(geometry: Geometry) -> Block:
    """What the blocks of an output cover together."""
    return Block(geometry.output_batch, all_groups(geometry), geometry.output_size[0])


def shares(first: int, second: int, threads: int) -> tuple[int, int]:
    """Sizes of blocks of two dimensions, one for each thread: one of the two is cut."""
    if first % threads == 0 or first > second:
        return max(1, -(-first // threads)), max(1, second)
    return max(1, first), max(1, -(-second // threads))


def parts(geometry: Geometry, totals: tuple[int, int], threads: int) -> tuple[int, int]:
    """The same where blocks take no memory: several for each thread, where its part is more than PART_MACS."""
    return shares(*totals, threads * max(1, -(-geometry.macs // (PART_MACS * threads))))


def at_once(geometry: Geometry, block: Block, threads: int) -> int:
    """How many blocks are in work at one time."""
    return min(threads, prod(_counts(geometry, block)))


def product_elements(geometry: Geometry, how: Columns) -> int:
    """Elements of a block's products that are added to others."""
    places = prod(how.block) * prod(geometry.output_size[1:])
    return places * kernels_per_group(geometry) if how.halo else 0


def scatter_block(geometry: Geometry, itemsize: int) -> tuple[int, int]:
    """Items and rows of the input of the largest block whose products fit COLUMNS_BYTES; at least one row."""
    row, height = geometry.out_channels * prod(geometry.input_size[1:]) * itemsize, geometry.input_size[0]
    items = min(geometry.batch, max(1, COLUMNS_BYTES // (row * height)))
    return items, min(height, max(1, COLUMNS_BYTES // row))


def scatter_product_elements(geometry: Geometry, block: tuple[int, int]) -> int:
    """Elements of one product of a scatter_block."""
    return prod(block) * geometry.out_channels * prod(geometry.input_size[1:])


def ordered_block(geometry: Geometry, itemsize: int, threads: int = 1) -> Block:
    """Groups of one item, or rows of one group, of ORDERED_BYTES; at least one row. Smaller, as in `columns`."""
    row, height = prod(geometry.output_size[1:]) * itemsize, geometry.output_size[0]
    groups = min(all_groups(geometry), max(1, ORDERED_BYTES // max(1, row * height)))
    block = Block(1, groups, min(height, max(1, ORDERED_BYTES // max(1, row))))
    return _balanced(geometry, block, threads)


def needs_padded_copy(geometry: Geometry) -> bool:
    """Whether the input has to be dilated, cropped or padded into an array of its own."""
    op = geometry.operation
    return not op.transposed and (any(op.pad_begin) or any(op.pad_end) or any(d > 1 for d in op.input_dilation))


def workspace_bytes(geometry: Geometry, threads: int = 1) -> int:
    """Bytes that the reference allocates beside input, weight and output on so many threads, at most: the weight as it
    is prepared, and what stands while it sums or, if that is more, while the sums are rounded and turned round.
    """
    op = geometry.operation
    narrow, wide = dtypes.TABLE[op.dtype], op.accumulator
    turned = op.layout == "channels_last"
    weight, sums = prod(op.weight_shape), prod(geometry.canonical_output) * wide.itemsize
    during = sums + _sums_elements(geometry, wide.itemsize, threads) * wide.itemsize
    if narrow.exact:
        before = _padded_elements(geometry) * narrow.itemsize if needs_padded_copy(geometry) else 0
        before += weight * narrow.itemsize if turned or op.flip else 0
        during += (_padded_elements(geometry) + weight) * wide.itemsize + (sums if _may_need_shadow(geometry) else 0)
        after = sums + geometry.output_bytes + (sums if op.overflow == "wrap" else 0)
    else:
        before = weight * wide.itemsize if turned or op.flip or narrow is not wide else 0
        copied = narrow is not wide or needs_padded_copy(geometry)
        during += _padded_elements(geometry) * wide.itemsize if copied else 0
        after = sums
        if wide.name != op.output_dtype or (turned and geometry.out_channels > 1):
            after += geometry.output_bytes
    blocks = min(BLOCK_BYTES, 4 * max(_padded_elements(geometry), prod(geometry.canonical_output)) * wide.itemsize)
    return before + max(during, after) + blocks - geometry.output_bytes


def _may_need_shadow(geometry: Geometry) -> bool:
    """Whether integers as large as their type has them would be summed in float64 too, to see if they fit 64 bits."""
    op, row = geometry.operation, dtypes.TABLE[geometry.operation.dtype]
    largest = 1 if row.kind == "bool" else 2**row.bits
    modular = op.overflow == "wrap" and dtypes.TABLE[op.output_dtype].exact
    return not modular and geometry.sum_length * largest**2 + largest >= 2 ** dtypes.TABLE[row.accumulator].bits


def _padded_elements(geometry: Geometry) -> int:
    op = geometry.operation
    return (
        prod(op.canonical_input)
        if op.transposed
        else geometry.batch * geometry.in_channels * prod(geometry.padded_size)
    )


def _sums_elements(geometry: Geometry, itemsize: int, threads: int) -> int:
    """What the sums hold beside operands and result."""
    kind, weight = method(geometry), prod(geometry.operation.weight_shape)
    if kind == "ordered":
        block = ordered_block(geometry, itemsize, threads)
        return at_once(geometry, block, threads) * prod(block) * prod(geometry.output_size[1:])
    if kind in ("gemm", "shift"):
        how = columns(geometry, itemsize, threads)
        held = how.elements + product_elements(geometry, how)
        return (weight if how.halo else 0) + at_once(geometry, how.block, threads) * held
    return weight + _scattered_elements(geometry, itemsize, threads) if kind == "scatter" else 0


def _scattered_elements(geometry: Geometry, itemsize: int, threads: int) -> int:
    """The products of all threads, each with its share of the items or the kernels."""
    block, kernels = scatter_block(geometry, itemsize), geometry.out_channels // geometry.operation.groups
    items, some = shares(geometry.batch, kernels, threads)
    busy = -(-geometry.batch // items) * -(-kernels // some)
    return scatter_product_elements(geometry, (min(block[0], items), block[1])) * busy * some // kernels


def scatter_size(geometry: Geometry) -> tuple[int, ...]:
    """The uncropped sum of a transposed convolution along each dimension: (size-1)*stride + e."""
    strides = geometry.operation.stride
    return tuple((size - 1) * s + e for size, s, e in zip(geometry.input_size, strides, geometry.extents, strict=True))


def scatter_elements(geometry: Geometry) -> int:
    """Elements of that sum over batch and channels."""
    return geometry.batch * geometry.out_channels * prod(scatter_size(geometry))
