"""The reference's sums of products, on canonical arrays of one accumulator type. Each writes into a fresh (N, O, *size)
array.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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


def linear(geometry: Geometry, x: Array, w: Array) -> Array:
    """A kernel that spans the input: a matrix product (N, C * prod(K)) with (C * prod(K), O)."""
    out = np.empty(geometry.canonical_output, x.dtype)
    np.matmul(x.reshape(len(x), -1), w.reshape(len(w), -1).T, out=out.reshape(len(x), len(w)))
    return out


def pointwise(geometry: Geometry, x: Array, w: Array) -> Array:
    """A kernel of one element: per group one matrix product of (O/g, C/g) with (C/g, positions)."""
    groups, batch = geometry.operation.groups, geometry.output_batch
    parts = geometry.operation.batch_groups
    places = prod(geometry.output_size)
    columns = x.reshape(parts, batch, groups, geometry.channels_per_group, places)
    out = np.empty((batch, geometry.out_channels, *geometry.output_size), x.dtype)
    rows = w.reshape(parts, 1, groups, geometry.out_channels // (groups * parts), geometry.channels_per_group)
    target = out.reshape(batch, parts, groups, rows.shape[3], places)
    _multiply(rows, columns, target.swapaxes(0, 1))
    return out


def gemm(geometry: Geometry, x: Array, w: Array) -> Array:
    """im2col, block by block: windows of x are copied into columns, which a matrix product sums. "shift" copies windows
    of the kernel without its first dimension, over rows that the offsets along it share, and adds a product for each.
    """
    out = np.empty(geometry.canonical_output, x.dtype)
    how = methods.columns(geometry, x.itemsize)
    matrices, windows = _matrices(geometry, how, w), _windows(geometry, how, x)
    items, groups = windows.shape[:2]
    target = out.reshape(items, groups, matrices.shape[2], geometry.output_size[0], -1)
    columns = np.empty(how.elements, x.dtype)
    scratch = np.empty(methods.product_elements(geometry, how), x.dtype)
    for n, g, rows in _blocks(how.block, (items, groups, geometry.output_size[0])):
        read = slice(rows.start, rows.stop + how.halo)
        window = windows[(n, g, *(slice(None),) * (1 + geometry.ndim), read)]
        copied = columns[: window.size].reshape(window.shape)
        copied[...] = window
        sums = target[n, g, :, rows]
        _add_products(
            matrices[:, g],
            copied.reshape(*sums.shape[:2], matrices.shape[3], -1),
            geometry.operation.dilation[0] * sums.shape[4],
            sums.reshape(*sums.shape[:3], -1),
            scratch,
        )
    return out


def ordered(geometry: Geometry, x: Array, w: Array) -> Array:
    """A multiply-add for each element of the kernel, in their order."""
    out = np.empty(geometry.canonical_output, x.dtype)
    windows = _windows(geometry, methods.columns(geometry, x.itemsize), x)
    block = methods.ordered_block(geometry, x.itemsize)
    scratch = np.empty(prod(block) * prod(geometry.output_size[1:]), x.dtype)
    for n, g, rows in _blocks(block, (*windows.shape[:2], geometry.output_size[0])):
        target = out[n, g, rows]
        product = scratch[: target.size].reshape(target.shape)
        for i, k in enumerate(np.ndindex(*geometry.kernel)):
            factor = w[(g, 0, *k)].reshape(-1, *(1,) * geometry.ndim)
            np.multiply(windows[(n, g, 0, *k, rows)], factor, out=product if i else target)
            if i:
                target += product
    return out


def _matrices(geometry: Geometry, how: methods.Columns, w: Array) -> Array:
    """(offsets, groups, O/g, L): the weights that meet one set of columns, for each offset that shares them."""
    groups = methods.all_groups(geometry)
    split = w.reshape(groups, len(w) // groups, geometry.channels_per_group, how.offsets, -1)
    return split.transpose(3, 0, 1, 2, 4).reshape(how.offsets, *split.shape[:2], -1)


def _windows(geometry: Geometry, how: methods.Columns, x: Array) -> Array:
    """A view (N, groups, C/g, *K, *output_size) of x: [n, g, c, k, p] is x[n, g C/g + c, p*stride + k*dilation]. Where
    offsets share columns the kernel is 1 long in its first dimension, and there are as many rows as they read. Batch
    groups are groups of other items.
    """
    op = geometry.operation
    kernel = (geometry.kernel[0] // how.offsets, *geometry.kernel[1:])
    size = (geometry.output_size[0] + how.halo, *geometry.output_size[1:])
    split = x.reshape(op.batch_groups, geometry.output_batch, op.groups, geometry.channels_per_group, *x.shape[2:])
    grouped = split.swapaxes(0, 1).reshape(geometry.output_batch, methods.all_groups(geometry), *split.shape[3:])
    steps = grouped.strides[3:]
    kernel_strides = tuple(step * d for step, d in zip(steps, op.dilation, strict=True))
    output_strides = tuple(step * s for step, s in zip(steps, op.stride, strict=True))
    shape = (*grouped.shape[:3], *kernel, *size)
    return as_strided(grouped, shape, (*grouped.strides[:3], *kernel_strides, *output_strides), writeable=False)


def _add_products(matrices: Array, columns: Array, step: int, target: Array, scratch: Array) -> None:
    """Target (items, groups, O/g, places) = sum over i of matrices[i] @ columns[..., i*step : i*step + places]."""
    places = target.shape[-1]
    for i, matrix in enumerate(matrices):
        product = scratch[: target.size].reshape(target.shape) if i else target
        _multiply(matrix, columns[..., i * step : i * step + places], product)
        if i:
            target += product


def _multiply(matrix: Array, columns: Array, out: Array) -> None:
    """Out (..., O, places) = matrix (..., O, L) @ columns (..., L, places)."""
    multiply = np.multiply if matrix.shape[-1] == 1 else np.matmul  # matmul takes many times as long where L is 1
    multiply(matrix, columns, out=out)


def scatter(geometry: Geometry, x: Array, w: Array) -> Array:
    """Transposed: block by block, per kernel offset one matrix product, added where it lands."""
    groups, per_group = geometry.operation.groups, geometry.channels_per_group
    out = np.zeros(geometry.canonical_output, x.dtype)
    columns = x.reshape(geometry.batch, groups, per_group, geometry.input_size[0], -1)
    split = w.reshape(groups, per_group, -1, *geometry.kernel)
    matrices = {k: np.ascontiguousarray(split[(..., *k)]).swapaxes(1, 2) for k in np.ndindex(*geometry.kernel)}
    block = methods.scatter_block(geometry, x.itemsize)
    scratch = np.empty(methods.scatter_product_elements(geometry, block), x.dtype)
    for items, rows in _blocks(block, (geometry.batch, geometry.input_size[0])):
        some = columns[items, :, :, rows].reshape(items.stop - items.start, groups, per_group, -1)
        shape = (len(some), groups, split.shape[2], some.shape[3])
        product = scratch[: prod(shape)].reshape(shape)
        landing = product.reshape(len(some), out.shape[1], rows.stop - rows.start, *geometry.input_size[1:])
        for k, matrix in matrices.items():
            _multiply(matrix, some, product)
            source, target = _landing(geometry, k, rows)
            out[(items, slice(None), *target)] += landing[last(*source)]
    return out


def _landing(geometry: Geometry, k: tuple[int, ...], rows: slice) -> tuple[list[slice], list[slice]]:
    """Which positions of these rows of the input lie in the output at kernel offset k, and where."""
    op, sources, targets = geometry.operation, [], []
    firsts, lengths = (rows.start, *(0,) * (geometry.ndim - 1)), (rows.stop - rows.start, *geometry.input_size[1:])
    for d, (offset, first, length) in enumerate(zip(k, firsts, lengths, strict=True)):
        step = op.stride[d]
        begin = first * step + offset * op.dilation[d] - op.pad_begin[d]
        low = max(0, -(begin // step))
        high = max(low, min(length, (geometry.output_size[d] - 1 - begin) // step + 1))
        sources.append(slice(low, high))
        targets.append(slice(begin + low * step, begin + high * step, step))
    return sources, targets


def _blocks(sizes: Sequence[int], totals: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    """Slices of `sizes` that together cover `totals`."""
    starts = itertools.product(*(range(0, total, size) for size, total in zip(sizes, totals, strict=True)))
    for at in starts:
        yield tuple(slice(a, min(a + size, total)) for a, size, total in zip(at, sizes, totals, strict=True))


_METHODS = {
    "linear": linear,
    "pointwise": pointwise,
    "ordered": ordered,
    "shift": gemm,
    "gemm": gemm,
    "scatter": scatter,
}
