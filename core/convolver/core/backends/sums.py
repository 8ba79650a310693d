"""The reference's sums of products, on canonical arrays of one accumulator type. Each writes into a fresh (N, O, *size)
array.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from convolver.core import methods
from convolver.core.backends import Array, last
from convolver.core.geometry import Geometry


def summed(geometry: Geometry, x: Array, w: Array) -> Array:
    """The convolution of the padded input x (N, C, *P) with w, without bias. x and w are of one dtype, which is the
    result's.
    """
    return _METHODS[methods.method(geometry)](geometry, x, w)


def pointwise(geometry: Geometry, x: Array, w: Array) -> Array:
    """A kernel of one element: per group one matrix product of (O/g, C/g) with (C/g, positions)."""
    groups, batch = geometry.operation.groups, geometry.output_batch
    parts = geometry.operation.batch_groups
    places = prod(geometry.output_size)
    columns = x.reshape(parts, batch, groups, geometry.channels_per_group, places)
    out = np.empty((batch, geometry.out_channels, *geometry.output_size), x.dtype)
    rows = w.reshape(parts, 1, groups, geometry.out_channels // (groups * parts), geometry.channels_per_group)
    target = out.reshape(batch, parts, groups, rows.shape[3], places)
    np.matmul(rows, columns, out=target.swapaxes(0, 1))
    return out


def shift(geometry: Geometry, x: Array, w: Array) -> Array:
    """One channel in, few out of each group: a multiply-add per kernel offset, in blocks that stay in the cache."""
    out = np.empty(geometry.canonical_output, x.dtype)
    windows = _windows(geometry, x)
    multiplier = geometry.out_channels // geometry.operation.groups
    for j in range(multiplier):
        _multiply_add(geometry, windows, w[j::multiplier], out[:, j::multiplier])
    return out


def _multiply_add(geometry: Geometry, windows: Array, w: Array, out: Array) -> None:
    """out[n, c] = sum over k of windows[n, c, k] * w[c, 0, k]."""
    scratch = np.empty(methods.SHIFT_BYTES // out.itemsize, out.dtype)
    for n, channels, rows in _blocks(geometry, scratch.size):
        target = out[n, channels, rows]
        product = scratch[: target.size].reshape(target.shape) if target.size <= scratch.size else np.empty_like(target)
        for i, k in enumerate(np.ndindex(*geometry.kernel)):
            factor = w[(channels, 0, *k)].reshape(-1, *(1,) * geometry.ndim)
            window = windows[(n, channels, *k, rows)]
            np.multiply(window, factor, out=product if i else target)
            if i:
                target += product


def _blocks(geometry: Geometry, elements: int) -> Iterator[tuple[int, slice, slice]]:
    """Item, channels and rows of blocks of about so many elements: several channels where they are small, rows where
    one is large.
    """
    row = prod(geometry.output_size[1:])
    rows = max(1, min(geometry.output_size[0], elements // max(row, 1)))
    channels = max(1, elements // max(row * rows, 1)) if rows == geometry.output_size[0] else 1
    for n in range(geometry.output_batch):
        for c in range(0, geometry.in_channels, channels):
            for r in range(0, geometry.output_size[0], rows):
                yield n, slice(c, c + channels), slice(r, r + rows)


def gemm(geometry: Geometry, x: Array, w: Array) -> Array:
    """im2col and a matrix product, block by block: columns (items, groups, C/g * prod(K), places)."""
    op, batch = geometry.operation, geometry.output_batch
    out = np.empty(geometry.canonical_output, x.dtype)
    block = methods.gemm_block(geometry, x.itemsize)
    per_part = geometry.out_channels // op.batch_groups
    for part in range(op.batch_groups):
        matrix = w[part * per_part : (part + 1) * per_part].reshape(
            op.groups, per_part // op.groups, geometry.sum_length
        )
        windows = _windows(geometry, x[part * batch : (part + 1) * batch])
        target = out[:, part * per_part : (part + 1) * per_part]
        for n in range(0, batch, block.items):
            for r in range(0, geometry.output_size[0], block.rows):
                items, rows = slice(n, n + block.items), slice(r, r + block.rows)
                columns = windows[(items, slice(None), *(slice(None),) * geometry.ndim, rows)]
                _multiply(matrix, columns, target[items, :, rows])
    return out


def _multiply(matrix: Array, columns: Array, target: Array) -> None:
    """Target (items, O, rows, ...) = matrix (groups, O/g, L) times columns (items, C, *K, rows, ...), which is copied
    here.
    """
    groups, per_group, length = matrix.shape
    items = target.shape[0]
    product = np.matmul(matrix, columns.reshape(items, groups, length, prod(target.shape[2:])))
    target[...] = product.reshape(items, groups * per_group, *target.shape[2:])


def _windows(geometry: Geometry, x: Array) -> Array:
    """A view (N, C, *K, *output_size) of x: element [n, c, k, p] is x[n, c, p*stride + k*dilation]."""
    op = geometry.operation
    steps = x.strides[2:]
    kernel_strides = tuple(step * d for step, d in zip(steps, op.dilation, strict=True))
    output_strides = tuple(step * s for step, s in zip(steps, op.stride, strict=True))
    shape = (*x.shape[:2], *geometry.kernel, *geometry.output_size)
    return as_strided(x, shape, (*x.strides[:2], *kernel_strides, *output_strides), writeable=False)


def scatter(geometry: Geometry, x: Array, w: Array) -> Array:
    """Transposed: per kernel offset one matrix product, added where it belongs; then cropped, or extended by zeros."""
    op = geometry.operation
    full = np.zeros((geometry.batch, geometry.out_channels, *methods.scatter_size(geometry)), x.dtype)
    places = prod(geometry.input_size)
    columns = x.reshape(geometry.batch, op.groups, geometry.channels_per_group, places)
    per_group = geometry.out_channels // op.groups
    for k in np.ndindex(*geometry.kernel):
        matrix = (
            w[(slice(None), slice(None), *k)].reshape(op.groups, geometry.channels_per_group, per_group).swapaxes(1, 2)
        )
        product = np.matmul(matrix, columns).reshape(geometry.batch, geometry.out_channels, *geometry.input_size)
        full[last(*_landing(geometry, k))] += product
    return _cut(geometry, full)


def _landing(geometry: Geometry, k: tuple[int, ...]) -> tuple[slice, ...]:
    op = geometry.operation
    starts = [i * d for i, d in zip(k, op.dilation, strict=True)]
    return tuple(
        slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, geometry.input_size, op.stride, strict=True)
    )


def _cut(geometry: Geometry, full: Array) -> Array:
    """The part of `full` from pad_begin on, output_size long; positions outside it are 0."""
    begins, sizes, lengths = geometry.operation.pad_begin, geometry.output_size, full.shape[2:]
    if all(b >= 0 and b + size <= length for b, size, length in zip(begins, sizes, lengths, strict=True)):
        return full[last(*(slice(b, b + size) for b, size in zip(begins, sizes, strict=True)))]
    out = np.zeros((*full.shape[:2], *sizes), full.dtype)
    source = tuple(
        slice(max(b, 0), max(0, min(length, b + size))) for b, size, length in zip(begins, sizes, lengths, strict=True)
    )
    target = tuple(slice(s.start - b, s.stop - b) for b, s in zip(begins, source, strict=True))
    if all(s.stop > s.start for s in source):
        out[last(*target)] = full[last(*source)]
    return out


_METHODS = {"pointwise": pointwise, "shift": shift, "gemm": gemm, "scatter": scatter}
