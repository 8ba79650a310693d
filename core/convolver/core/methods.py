"""How the reference back end will sum, decided from integers, with the bytes that it takes: one place for the plan and
for the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from convolver.core import dtypes
from convolver.core.geometry import Geometry

Method = Literal["pointwise", "shift", "gemm", "scatter"]

COLUMNS_BYTES = 4 << 20
"""The columns of im2col that stand in memory at one time: about a last-level cache."""

SHIFT_BYTES = 256 << 10
"""The block that a multiply-add per kernel offset works on: about a second-level cache."""


MOST_MULTIPLIED = 4
"""Kernels for each channel, up to which a multiply-add per kernel offset is cheaper than moving columns (im2col)."""


@dataclass(frozen=True, slots=True)
class Block:
    """`items` of the batch by `rows` of the first spatial dimension of the output."""

    items: int
    rows: int


def method(geometry: Geometry) -> Method:
    """scatter: a product per kernel offset, added where it belongs (transposed). pointwise: one matrix product. shift:
    a multiply-add per kernel offset, for one channel in and few out of each group. gemm: im2col in blocks, then a
    matrix product (Chellapilla et al., 2006).
    """
    if geometry.operation.transposed:
        return "scatter"
    if all(k == 1 for k in geometry.kernel) and all(s == 1 for s in geometry.operation.stride):
        return "pointwise"
    few = geometry.channels_per_group == 1 and geometry.out_channels <= MOST_MULTIPLIED * geometry.operation.groups
    return "shift" if few and geometry.operation.batch_groups == 1 else "gemm"


def gemm_block(geometry: Geometry, itemsize: int) -> Block:
    """The largest block whose columns fit COLUMNS_BYTES: whole items, or rows of one item, at least one row."""
    row = geometry.in_channels * prod(geometry.kernel) * prod(geometry.output_size[1:]) * itemsize
    rows = max(1, min(geometry.output_size[0], COLUMNS_BYTES // max(row, 1)))
    items = max(1, COLUMNS_BYTES // max(row * geometry.output_size[0], 1)) if rows == geometry.output_size[0] else 1
    return Block(max(1, min(items, geometry.output_batch)), rows)


def needs_padded_copy(geometry: Geometry) -> bool:
    """Whether the input has to be dilated, cropped or padded into an array of its own."""
    op = geometry.operation
    return not op.transposed and (any(op.pad_begin) or any(op.pad_end) or any(d > 1 for d in op.input_dilation))


def workspace_bytes(geometry: Geometry) -> int:
    """Bytes that the reference allocates beside input, weight and output, at most."""
    op = geometry.operation
    narrow, wide = dtypes.TABLE[op.dtype], dtypes.accumulator(dtypes.TABLE[op.dtype], dtypes.TABLE[op.output_dtype])
    if narrow.exact:
        return _integer_bytes(geometry)
    size, outputs = wide.itemsize, prod(geometry.canonical_output)
    total = (prod(op.weight_shape) + _sums_elements(geometry, size)) * size + SHIFT_BYTES
    if narrow is not wide or needs_padded_copy(geometry):
        total += _padded_elements(geometry) * size
    if wide.name != op.output_dtype:
        total += outputs * size
    if _needs_output_copy(geometry):
        total += outputs * dtypes.TABLE[op.output_dtype].itemsize
    return total


def _integer_bytes(geometry: Geometry) -> int:
    """Everything is held in 8 bytes: operands, sums and what overflow makes of them; the float64 shadow comes to that
    where the type's largest values would need it.
    """
    op = geometry.operation
    row, outputs = dtypes.TABLE[op.dtype], prod(geometry.canonical_output)
    operands = _padded_elements(geometry) + prod(op.weight_shape)
    total = 8 * (operands + _sums_elements(geometry, 8) + (3 if _needs_output_copy(geometry) else 2) * outputs)
    total += row.itemsize * operands + SHIFT_BYTES
    largest = 1 if row.kind == "bool" else 2**row.bits
    modular = op.overflow == "wrap" and dtypes.TABLE[op.output_dtype].exact
    if geometry.sum_length * largest**2 + largest >= 2**53 and not modular:
        total += 8 * (2 * operands + 3 * outputs)
    return total


def _padded_elements(geometry: Geometry) -> int:
    op = geometry.operation
    return (
        prod(op.canonical_input)
        if op.transposed
        else geometry.batch * geometry.in_channels * prod(geometry.padded_size)
    )


def _needs_output_copy(geometry: Geometry) -> bool:
    """Whether the sums, channels first, have to be turned round."""
    return geometry.operation.layout == "channels_last" and geometry.out_channels > 1


def _sums_elements(geometry: Geometry, itemsize: int) -> int:
    """What the sums hold beside operands and result; reading channels first copies what is channels last."""
    op, kind = geometry.operation, method(geometry)
    turned = prod(op.input_shape) if op.layout == "channels_last" and kind in ("pointwise", "scatter") else 0
    if kind == "gemm":
        block = gemm_block(geometry, itemsize)
        places = block.items * block.rows * prod(geometry.output_size[1:])
        return places * (geometry.in_channels * prod(geometry.kernel) + geometry.out_channels // op.batch_groups)
    if kind == "scatter":
        return turned + scatter_elements(geometry) + geometry.batch * geometry.out_channels * prod(geometry.input_size)
    return turned


def scatter_size(geometry: Geometry) -> tuple[int, ...]:
    """The uncropped sum of a transposed convolution along each dimension: (size-1)*stride + e."""
    strides = geometry.operation.stride
    return tuple((size - 1) * s + e for size, s, e in zip(geometry.input_size, strides, geometry.extents, strict=True))


def scatter_elements(geometry: Geometry) -> int:
    """Elements of that sum over batch and channels."""
    return geometry.batch * geometry.out_channels * prod(scatter_size(geometry))
