"""The reference's sums of products, on canonical arrays of one accumulator type. Each writes into an array (N, O,
*size), block by block, on up to `threads` threads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from convolver.core import methods
from convolver.core.backends import Array, last
from convolver.core.backends.threads import shared
from convolver.core.cancellation import checked
from convolver.core.geometry import Geometry


def summed(geometry: Geometry, x: Array, w: Array, threads: int = 1, out: Array | None = None) -> Array:
    """The convolution of the padded input x (N, C, *P) with w, without bias. x and w are of one dtype, which is the
    result's; `out`, where it is given, is contiguous and becomes the result.
    """
    made = np.empty(geometry.canonical_output, x.dtype) if out is None else out
    _METHODS[methods.method(geometry)](geometry, x, w, made, threads)
    return made


def linear(geometry: Geometry, x: Array, w: Array, out: Array, threads: int) -> None:
    """A kernel that spans the input: a matrix product (N, C * prod(K)) with (C * prod(K), O)."""
    rows, columns, target = x.reshape(len(x), -1), w.reshape(len(w), -1).T, out.reshape(len(x), len(w))

    def multiply(blocks: Iterator[tuple[slice, ...]]) -> None:
        for kernels, items in blocks:
            np.matmul(rows[items], columns[:, kernels], out=target[items, kernels])

    shared(threads, _blocks(methods.parts(geometry, (len(w), len(x)), threads), (len(w), len(x))), multiply)


def pointwise(geometry: Geometry, x: Array, w: Array, out: Array, threads: int) -> None:
    """A kernel of one element: per group one matrix product of (O/g, C/g) with (C/g, positions)."""
    groups, batch = geometry.operation.groups, geometry.output_batch
    parts = geometry.operation.batch_groups
    places = prod(geometry.output_size)
    columns = x.reshape(parts, batch, groups, geometry.channels_per_group, places)
    rows = w.reshape(parts, 1, groups, geometry.out_channels // (groups * parts), geometry.channels_per_group)
    target = out.reshape(batch, parts, groups, rows.shape[3], places)

    def multiply(blocks: Iterator[tuple[slice, ...]]) -> None:
        for items, some in blocks:
            _multiply(rows, columns[:, items, ..., some], target.swapaxes(0, 1)[:, items, ..., some])

    shared(threads, _blocks(methods.parts(geometry, (batch, places), threads), (batch, places)), multiply)


def gemm(geometry: Geometry, x: Array, w: Array, out: Array, threads: int) -> None:
    """im2col, block by block: windows of x are copied into columns, which a matrix product sums. "shift" copies windows
    of the kernel without its first dimension, over rows that the offsets along it share, and adds a product for each.
    """
    how = methods.columns(geometry, x.itemsize, threads)
    matrices, windows = _matrices(geometry, how, w), _windows(geometry, how, x)
    items, groups = windows.shape[:2]
    target = out.reshape(items, groups, matrices.shape[2], geometry.output_size[0], -1)

    def sum_(blocks: Iterator[tuple[slice, ...]]) -> None:
        columns = np.empty(how.elements, x.dtype)
        scratch = np.empty(methods.product_elements(geometry, how), x.dtype)
        for n, g, rows in blocks:
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

    shared(threads, _blocks(how.block, methods.totals_of(geometry)), sum_)


def ordered(geometry: Geometry, x: Array, w: Array, out: Array, threads: int) -> None:
    """A multiply-add for each element of the kernel, in their order."""
    windows = _windows(geometry, methods.columns(geometry, x.itemsize), x)
    block = methods.ordered_block(geometry, x.itemsize, threads)

    def add(blocks: Iterator[tuple[slice, ...]]) -> None:
        scratch = np.empty(prod(block) * prod(geometry.output_size[1:]), x.dtype)
        for n, g, rows in blocks:
            target = out[n, g, rows]
            product = scratch[: target.size].reshape(target.shape)
            for i, k in enumerate(np.ndindex(*geometry.kernel)):
                factor = w[(g, 0, *k)].reshape(-1, *(1,) * geometry.ndim)
                np.multiply(windows[(n, g, 0, *k, rows)], factor, out=product if i else target)
                if i:
                    target += product

    shared(threads, _blocks(block, methods.totals_of(geometry)), add)


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


def scatter(geometry: Geometry, x: Array, w: Array, out: Array, threads: int) -> None:
    """Transposed: block by block, per kernel offset one matrix product, added where it lands. Threads have output
    channels or items of their own, since blocks of rows land on one another.
    """
    groups, per_group = geometry.operation.groups, geometry.channels_per_group
    out.fill(0)
    columns = x.reshape(geometry.batch, groups, per_group, geometry.input_size[0], -1)
    split = w.reshape(groups, per_group, -1, *geometry.kernel)
    matrices = {k: np.ascontiguousarray(split[(..., *k)]).swapaxes(1, 2) for k in np.ndindex(*geometry.kernel)}
    target = out.reshape(geometry.batch, groups, -1, *geometry.output_size)

    def add(parts: Iterator[tuple[slice, ...]]) -> None:
        for items, kernels in parts:
            own = {k: matrix[:, kernels] for k, matrix in matrices.items()}
            _scatter(geometry, columns[items], own, target[items, :, kernels])

    kernels = split.shape[2]
    shared(threads, _blocks(methods.shares(geometry.batch, kernels, threads), (geometry.batch, kernels)), add)


def _scatter(geometry: Geometry, columns: Array, matrices: dict[tuple[int, ...], Array], out: Array) -> None:
    """Adds columns (N, g, C/g, rows, places), by a matrix (g, O/g, C/g) for each offset, to out (N, g, O/g, *size)."""
    batch, groups, per_group, height = columns.shape[:4]
    block = methods.scatter_block(geometry, out.itemsize)
    scratch = np.empty(min(batch, block[0]) * prod(out.shape[1:3]) * block[1] * columns.shape[4], out.dtype)
    for items, rows in checked(_blocks(block, (batch, height))):
        some = columns[items, :, :, rows].reshape(items.stop - items.start, groups, per_group, -1)
        shape = (len(some), groups, out.shape[2], some.shape[3])
        product = scratch[: prod(shape)].reshape(shape)
        landing = product.reshape(*shape[:3], rows.stop - rows.start, *geometry.input_size[1:])
        for k, matrix in matrices.items():
            _multiply(matrix, some, product)
            source, target = _landing(geometry, k, rows)
            out[(items, slice(None), slice(None), *target)] += landing[last(*source)]


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
