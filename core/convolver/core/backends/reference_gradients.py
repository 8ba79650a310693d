"""The reference's gradients of a convolution: NumPy alone, sums in the accumulator's type, rounded once."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, TypeVar

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from convolver.core import dtypes
from convolver.core.adjoint import (
    as_forward,
    copies_elements,
    correlation,
    exchanges,
    has_unit_stride,
    input_gradient,
    source_size,
    weight_block,
)
from convolver.core.backends import Array, last
from convolver.core.backends.arrays import (
    canonical_input,
    canonical_weight,
    in_layout,
    padded,
    source_positions,
)
from convolver.core.backends.integers import _rounded
from convolver.core.backends.sums import summed
from convolver.core.cancellation import checked, checkpoint
from convolver.core.geometry import Geometry, dilated
from convolver.core.gradients import Wanted, outputs
from convolver.core.methods import is_linear
from convolver.core.operation import Operation

Positions = NDArray[np.intp]
T = TypeVar("T")


def gradients(
    geometry: Geometry, wanted: Wanted, x: Array | None, w: Array | None, grad_output: Array
) -> dict[str, Array]:
    """Those wanted of grad_input, grad_weight and grad_bias, in the operation's layout and dtype, as x, w and
    grad_output are (which is of the output_dtype). Only the weight's gradient reads x, and only the input's reads w.
    """
    if not geometry.output_batch:
        return {name: np.zeros(shape, dtypes.TABLE[dtype].numpy) for name, (dtype, shape) in outputs(geometry, wanted)}
    with np.errstate(all="ignore"):  # NaN and infinity travel as IEEE has them
        return dict(_each(geometry, wanted, x, w, canonical_input(geometry.operation, grad_output)))


def _each(
    geometry: Geometry, wanted: Wanted, x: Array | None, w: Array | None, grad_output: Array
) -> Iterator[tuple[str, Array]]:
    """One after the other, so that no wide one stands beside the next."""
    op, g = geometry.operation, _wide(geometry.operation, grad_output)
    source = g
    if op.transposed and (wanted.input or wanted.weight):
        source = _window(g, tuple(-begin for begin in op.pad_begin), source_size(geometry))
    if wanted.input:
        checkpoint()
        through_input = _input(geometry, _wide(op, canonical_weight(op, given(w, "weight"))), source)
        yield "grad_input", _rounded_once(op, in_layout(op, through_input))
        del through_input
    if wanted.weight:
        checkpoint()
        through_weight = _weight(geometry, _wide(op, canonical_input(op, given(x, "input"))), source)
        yield "grad_weight", _rounded_once(op, weight_in_layout(op, through_weight))
    if wanted.bias:
        checkpoint()
        yield "grad_bias", _rounded_once(op, g.sum((0, *range(2, g.ndim))))


def given(operand: T | None, name: str) -> T:
    """The operand that a gradient is computed from. Raises ValueError where it is missing."""
    if operand is None:
        raise ValueError(f"the {name} is missing, and a gradient that is wanted is computed from it")
    return operand


def _wide(op: Operation, array: Array) -> Array:
    """In the accumulator's type; of a complex gradient with respect to reals the real part (torch's convention)."""
    wide = op.accumulator
    return (array if wide.kind == "complex" else array.real).astype(wide.numpy, copy=False)


def _rounded_once(op: Operation, grad: Array) -> Array:
    """Contiguous, in the operation's dtype."""
    narrow = dtypes.TABLE[op.dtype]
    if grad.dtype == np.float64 and narrow.numpy.isbuiltin != 1:
        grad = _rounded(grad, narrow)
    return np.ascontiguousarray(grad, narrow.numpy)


def weight_in_layout(op: Operation, canonical: Array) -> Array:
    """The inverse of canonical_weight; a view."""
    array = np.flip(canonical, tuple(range(2, canonical.ndim))) if op.flip else canonical
    return array if op.layout == "channels_first" else array.transpose(*range(2, array.ndim), 1, 0)


def _input(geometry: Geometry, w: Array, g: Array) -> Array:
    """(N, C, *S)."""
    op, backward = geometry.operation, input_gradient(geometry)
    if not prod(op.canonical_input):
        return np.empty(op.canonical_input, g.dtype)
    if is_linear(geometry):
        through: Array = g.reshape(len(g), -1) @ w.conj().reshape(len(w), -1)
        return through.reshape(op.canonical_input)
    if has_unit_stride(backward.operation) and np.isfinite(w).all():
        w = turned(backward.operation.groups, w)
        backward = as_forward(backward)
    grad = summed(backward, padded(backward, g, g.dtype), np.ascontiguousarray(w.conj()))
    if op.transposed:
        return grad
    grad = grad.reshape(geometry.output_batch, op.batch_groups, geometry.in_channels, *grad.shape[2:])
    return _unpadded(geometry, grad.swapaxes(0, 1).reshape(geometry.batch, *grad.shape[2:]))


def turned(groups: int, w: Array) -> Array:
    """A weight (O, C/groups, *K) as (C, O/groups, *K), turned by 180 degrees; and back."""
    grouped = w.reshape(groups, -1, *w.shape[1:]).swapaxes(1, 2)
    return np.flip(grouped, tuple(range(3, grouped.ndim))).reshape(-1, grouped.shape[2], *w.shape[2:])


def _unpadded(geometry: Geometry, grad: Array) -> Array:
    """The gradient with respect to the input, of that with respect to the padded one, which is written to."""
    op = geometry.operation
    if copies_elements(op):
        for d in range(geometry.ndim):
            grad = _folded(op, grad, d)
        uncropped = tuple(map(dilated, geometry.input_size, op.input_dilation))
        grad = _window(grad, tuple(min(begin, 0) for begin in op.pad_begin), uncropped)
    return grad[last(*(slice(None, None, step) for step in op.input_dilation))]


def _folded(op: Operation, grad: Array, d: int) -> Array:
    """Without the borders of dimension d, whose elements are added to those that they had been copied from."""
    axis, (begin, end) = 2 + d, borders(op, d)
    if not begin + end:
        return grad
    before, inner, after = np.split(grad, (begin, grad.shape[axis] - end), axis)
    nothing = np.zeros((*grad.shape[:axis], 1, *grad.shape[axis + 1 :]), grad.dtype)
    targets, table = copied_from(op, d, inner.shape[axis])
    copies = np.concatenate((before, after, nothing), axis).take(table, axis)
    places: Any = (..., targets, *(slice(None),) * (grad.ndim - axis - 1))
    inner[places] += copies.sum(axis)
    return inner


def borders(op: Operation, d: int) -> tuple[int, int]:
    """Positions before and after what is left of the input in dimension d."""
    return max(op.pad_begin[d], 0), max(op.pad_end[d], 0)


def copied_from(op: Operation, d: int, length: int) -> tuple[Positions, Positions]:
    """The elements, of `length`, that the borders of dimension d are copies of, and for each of them, in a column, the
    positions that are: counted from 0 through both borders, and filled up with the number after the last one.
    """
    begin, end = borders(op, d)
    sources = (source_positions(op.padding_mode, first, n, length) for first, n in ((-begin, begin), (length, end)))
    read = np.concatenate(tuple(sources))
    order = np.argsort(read, kind="stable")
    targets, starts, counts = np.unique(read[order], return_index=True, return_counts=True)
    table = np.full((counts.max(), targets.size), read.size)
    table[np.arange(read.size) - np.repeat(starts, counts), np.repeat(np.arange(targets.size), counts)] = order
    return targets, table


def _window(array: Array, begins: tuple[int, ...], sizes: tuple[int, ...]) -> Array:
    """The positions of `array` from `begins` on, `sizes` many; 0 where it has none. A view where it has all."""
    lengths = array.shape[2:]
    if all(b >= 0 and b + size <= length for b, size, length in zip(begins, sizes, lengths, strict=True)):
        return array[last(*(slice(b, b + size) for b, size in zip(begins, sizes, strict=True)))]
    out = np.zeros((*array.shape[:2], *sizes), array.dtype)
    source = [slice(max(b, 0), max(0, b + size)) for b, size in zip(begins, sizes, strict=True)]
    found = array[last(*source)]
    firsts = [max(0, -b) for b in begins]
    out[last(*(slice(f, f + n) for f, n in zip(firsts, found.shape[2:], strict=True)))] = found
    return out


def _weight(geometry: Geometry, x: Array, g: Array) -> Array:
    """(O, C/groups, *K), transposed (C, O/groups, *K): the sum over items and places of the rows' elements times the
    windows of the source that they meet.
    """
    op, made = geometry.operation, correlation(geometry)
    if is_linear(geometry):
        products: Array = g.reshape(len(g), -1).T @ x.conj().reshape(len(x), -1)
        return products.reshape(made.operation.weight_shape)
    if op.transposed:
        return _summed_over(made, g, x)
    split = x.reshape(op.batch_groups, made.batch, *x.shape[1:]).swapaxes(0, 1)
    source = padded(geometry, split.reshape(made.batch, made.in_channels, *x.shape[2:]), x.dtype)
    return _summed_over(made, source, g).conj()


def _summed_over(made: Geometry, source: Array, rows: Array) -> Array:
    """The correlation of source and rows, over the windows of either: of the rows' only where the zeros around them
    meet no NaN and no infinity.
    """
    if not (exchanges(made) and np.isfinite(source.sum())):
        return _correlated(made, source, rows)
    other = as_forward(input_gradient(made))
    return turned(made.operation.groups, _correlated(other, padded(other, rows, rows.dtype), source)).conj()


def _correlated(made: Geometry, source: Array, rows: Array) -> Array:
    """The sum over n and p of conj(rows[n, o, p]) source[n, c, p*stride + k*dilation], by im2col and matrix products
    in blocks.
    """
    groups = made.operation.groups
    factors = np.moveaxis(rows.reshape(made.batch, groups, -1, *made.output_size), 0, 2)
    windows = _windows(made, source)
    total = np.zeros((groups, factors.shape[1], made.sum_length), source.dtype)
    for some, items, places in checked(_blocks(made, source.itemsize)):
        block: Any = (some, ..., items, places, *(slice(None),) * (made.ndim - 1))
        total[some] += _product(factors[block], windows[block], total[some].shape)
    return total.reshape(made.out_channels, made.channels_per_group, *made.kernel)


def _product(factors: Array, windows: Array, shape: tuple[int, ...]) -> Array:
    """The block's sums, of `shape` (groups, kernels, L); the columns are copied here."""
    groups, kernels, length = shape
    left, columns = factors.conj().reshape(groups, kernels, -1), windows.reshape(groups, length, -1)
    product: Array = np.matmul(left, columns.swapaxes(1, 2))
    return product


def _windows(made: Geometry, source: Array) -> Array:
    """A view (groups, C/g, *K, N, *output_size): [g, c, k, n, p] is source[n, g C/g + c, p*stride + k*dilation]."""
    split = source.reshape(made.batch, made.operation.groups, -1, *source.shape[2:])
    steps = split.strides[3:]
    of_kernel = (step * d for step, d in zip(steps, made.operation.dilation, strict=True))
    of_places = (step * s for step, s in zip(steps, made.operation.stride, strict=True))
    shape = (*split.shape[1:3], *made.kernel, made.batch, *made.output_size)
    return as_strided(split, shape, (*split.strides[1:3], *of_kernel, split.strides[0], *of_places), writeable=False)


def _blocks(made: Geometry, itemsize: int) -> Iterator[tuple[slice, slice, slice]]:
    """Groups, items and rows."""
    block = weight_block(made, itemsize)
    for g in range(0, made.operation.groups, block.groups):
        for n in range(0, made.batch, block.items):
            for r in range(0, made.output_size[0], block.rows):
                yield slice(g, g + block.groups), slice(n, n + block.items), slice(r, r + block.rows)
