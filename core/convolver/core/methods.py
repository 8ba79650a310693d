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


@dataclass(frozen=True, slots=True)
class Block:
    """`items` of the batch by `rows` of the first spatial dimension of the output."""

    items: int
    rows: int


def method(geometry: Geometry) -> Method:
    """scatter: a product per kernel offset, added where it belongs (transposed). pointwise: one matrix product. shift:
    a multiply-add per kernel offset, for one channel in and one out of each group. gemm: im2col in blocks, then a
    matrix product (Chellapilla et al., 2006).
    """
    if geometry.operation.transposed:
        return "scatter"
    if all(k == 1 for k in geometry.kernel) and all(s == 1 for s in geometry.operation.stride):
        return "pointwise"
    one_to_one = geometry.channels_per_group == 1 and geometry.out_channels == geometry.operation.groups
    return "shift" if one_to_one and geometry.operation.batch_groups == 1 else "gemm"


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
    """Bytes that the reference allocates beside input, weight and output."""
    op = geometry.operation
    narrow, wide = dtypes.TABLE[op.dtype], dtypes.accumulator(dtypes.TABLE[op.dtype], dtypes.TABLE[op.output_dtype])
    size = wide.itemsize
    total = 0
    if narrow is not wide or needs_padded_copy(geometry):
        padded = (
            prod(op.canonical_input)
            if op.transposed
            else geometry.batch * geometry.in_channels * prod(geometry.padded_size)
        )
        total += padded * size
    if wide.name != op.output_dtype:
        total += prod(geometry.canonical_output) * size
    total += prod(op.weight_shape) * size + _sums_bytes(geometry, size)
    return total * (3 if narrow.exact else 1)


def _sums_bytes(geometry: Geometry, size: int) -> int:
    kind = method(geometry)
    if kind == "gemm":
        block = gemm_block(geometry, size)
        columns = (
            block.items * block.rows * prod(geometry.output_size[1:]) * geometry.in_channels * prod(geometry.kernel)
        )
        return (columns // geometry.operation.batch_groups + prod(geometry.canonical_output)) * size
    if kind == "scatter":
        return (scatter_elements(geometry) + geometry.out_channels * prod(geometry.input_size)) * size
    return SHIFT_BYTES if kind == "shift" else 0


def scatter_size(geometry: Geometry) -> tuple[int, ...]:
    """The uncropped sum of a transposed convolution along each dimension: (size-1)*stride + e."""
    strides = geometry.operation.stride
    return tuple((size - 1) * s + e for size, s, e in zip(geometry.input_size, strides, geometry.extents, strict=True))


def scatter_elements(geometry: Geometry) -> int:
    """Elements of that sum over batch and channels."""
    return geometry.batch * geometry.out_channels * prod(scatter_size(geometry))
