"""Pooling in NumPy, one dimension after the other: a maximum of maxima, a sum of sums. Along a dimension the loop is
over the window's elements, each a shifted view of all windows, or over the windows, where there are fewer of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convolver.core import dtypes
from convolver.core.backends import Array, Index
from convolver.core.cancellation import checked
from convolver.core.pooling import Pooling
from convolver.core.pooling_memory import block, order


class Part(NamedTuple):
    """Along one dimension, the elements `inputs` that the windows `outputs` meet together: as many as there are
    windows, or all those of a single window. Where `where` is given, some of those windows have ended before.
    """

    outputs: slice
    inputs: slice | NDArray[np.intp]
    where: NDArray[np.bool_] | bool = True


def pool(pooling: Pooling, x: Array) -> Array:
    """The output, in the layout of x. NaN wins every maximum, as torch's."""
    output: Array = np.empty(pooling.output.shape, dtypes.TABLE[pooling.output_dtype].numpy)
    source, target = _canonical(pooling, x), _canonical(pooling, output)
    with np.errstate(all="ignore"):  # NaN and infinity travel as IEEE has them
        for part in checked(_blocks(pooling)):
            target[part] = _pooled(pooling, _wide(pooling, source[part]))
    return output


def pool_gradient(pooling: Pooling, x: Array, grad: Array) -> Array:
    """The gradient with respect to x, of the input's dtype, given that with respect to the output; both are floats or
    complex numbers. A maximum's goes to the first of the largest elements in row-major order, or to the last NaN, as
    torch's; a mean's, which does not read x, to the whole window.
    """
    output: Array = np.empty(pooling.input_shape, dtypes.TABLE[pooling.dtype].numpy)
    source, given, target = (_canonical(pooling, array) for array in (x, grad, output))
    with np.errstate(all="ignore"):
        for part in checked(_blocks(pooling)):
            g = _wide(pooling, given[part])
            largest = pooling.kind == "max"
            target[part] = _routed(pooling, _wide(pooling, source[part]), g) if largest else _spread(pooling, g)
    return output


def _canonical(pooling: Pooling, array: Array) -> Array:
    """(N, C, *S), a view."""
    batched = array if pooling.batched else array[np.newaxis]
    return batched if pooling.layout == "channels_first" else np.moveaxis(batched, -1, 1)


def _blocks(pooling: Pooling) -> Iterator[tuple[slice, slice]]:
    batch, channels = pooling.canonical_input[:2]
    items, step = block(pooling)
    for n in range(0, batch, items):
        for c in range(0, channels, step):
            yield slice(n, n + items), slice(c, c + step)


def _wide(pooling: Pooling, array: Array) -> Array:
    return array.astype(pooling.accumulator.numpy, copy=False)


def _pooled(pooling: Pooling, x: Array) -> Array:
    ufunc: np.ufunc = np.maximum if pooling.kind == "max" else np.add
    for d in order(pooling):
        x = _along(ufunc, x, 2 + d, _parts(pooling, d), pooling.output_size[d])
    return x if pooling.kind == "max" else _divided(pooling, x)


def _along(ufunc: np.ufunc, x: Array, axis: int, parts: Iterator[Part], outputs: int) -> Array:
    """Each window's elements joined by `ufunc`, along one axis."""
    shape = (*x.shape[:axis], outputs, *x.shape[axis + 1 :])
    y: Array = np.full_like(x, 0 if ufunc is np.add else _least(x.dtype), shape=shape)
    for part in parts:
        _join(ufunc, y[_at(axis, part.outputs)], x[_at(axis, part.inputs)], axis, part.where)
    return y


def _join(ufunc: np.ufunc, target: Array, elements: Array, axis: int, where: Any) -> None:  # noqa: ANN401 - of Part
    if elements.shape[axis] > target.shape[axis]:
        elements = ufunc.reduce(elements, axis, keepdims=True)
    ufunc(target, elements, out=target, where=_spanning(where, target.ndim - axis))


def _least(dtype: np.dtype[Any]) -> float | int | bool:
    if dtype.kind == "f":
        return -np.inf
    return False if dtype.kind == "b" else int(np.iinfo(dtype).min)


def _at(axis: int, index: slice | NDArray[np.intp]) -> Index:
    return (*(slice(None),) * axis, index)


def _spanning(along: Any, ndim: int) -> Any:  # noqa: ANN401 - an array of one dimension, or True
    """So that it broadcasts along the first of the last `ndim` dimensions."""
    return along if along is True else along.reshape(-1, *(1,) * (ndim - 1))


def _divided(pooling: Pooling, sums: Array) -> Array:
    """Each of them by the elements of its window, in place. Real and imaginary parts one by one: a complex division
    makes NaN of infinity.
    """
    for part in (sums.real, sums.imag) if sums.dtype.kind == "c" else (sums,):
        for count in _counts(pooling, part.dtype):
            np.divide(part, count, out=part)
    return sums


def _counts(pooling: Pooling, dtype: np.dtype[Any]) -> Iterator[Any]:
    """The window's elements: all of them, or along each dimension, broadcasting against the output."""
    if pooling.kernel:
        yield dtype.type(prod(pooling.kernel))
        return
    for d, (size, outputs) in enumerate(zip(pooling.input_size, pooling.output_size, strict=True)):
        starts, stops = _ends(size, outputs)
        yield _spanning((stops - starts).astype(dtype), pooling.ndim - d)


def _ends(size: int, outputs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where adaptive windows begin and end: floor(i n/o) and ceil((i+1) n/o)."""
    i = np.arange(outputs, dtype=np.int64)
    return i * size // outputs, -(-(i + 1) * size // outputs)


def _parts(pooling: Pooling, d: int) -> Iterator[Part]:
    """What the windows along dimension d read."""
    size, outputs = pooling.input_size[d], pooling.output_size[d]
    if pooling.kernel:
        window = pooling.kernel[d], pooling.stride[d], pooling.padding[d], pooling.dilation[d]
        return _regular(size, outputs, *window)
    if size % outputs == 0:
        return _regular(size, outputs, size // outputs, size // outputs, 0, 1)
    return _adaptive(size, outputs)


def _regular(size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> Iterator[Part]:
    """Window o reads o*stride - padding + i*dilation for i < kernel, where that is inside."""
    if kernel > outputs:
        for o in range(outputs):
            first = o * stride - padding
            begin = first if first >= 0 else first % dilation
            yield Part(slice(o, o + 1), slice(begin, min(size, first + (kernel - 1) * dilation + 1), dilation))
        return
    for i in range(kernel):
        shift = i * dilation - padding
        low, high = max(0, -(shift // stride)), min(outputs - 1, (size - 1 - shift) // stride)
        if low <= high:
            yield Part(slice(low, high + 1), slice(low * stride + shift, high * stride + shift + 1, stride))


def _adaptive(size: int, outputs: int) -> Iterator[Part]:
    starts, stops = _ends(size, outputs)
    longest = int((stops - starts).max())
    if longest > outputs:
        for o in range(outputs):
            yield Part(slice(o, o + 1), slice(int(starts[o]), int(stops[o])))
        return
    for i in range(longest):
        yield Part(slice(None), np.minimum(starts + i, size - 1), starts + i < stops)


def _spread(pooling: Pooling, g: Array) -> Array:
    """A mean's gradient. Input j is met by the adaptive windows floor(j o/n) to ceil((j+1) o/n)-1: adaptive windows
    themselves, from the output's size to the input's.
    """
    g = _divided(pooling, g.copy())
    for d in reversed(order(pooling)):
        size, outputs, axis = pooling.input_size[d], pooling.output_size[d], 2 + d
        if not pooling.kernel:
            g = _along(np.add, g, axis, _adaptive(outputs, size), size)
            continue
        spread: Array = np.zeros_like(g, shape=(*g.shape[:axis], size, *g.shape[axis + 1 :]))
        for part in _parts(pooling, d):
            spread[_at(axis, part.inputs)] += g[_at(axis, part.outputs)]
        g = spread
    return g


def _routed(pooling: Pooling, x: Array, g: Array) -> Array:
    """A maximum's gradient, back through the dimensions."""
    stages = [x]
    for d in order(pooling):
        stages.append(_along(np.maximum, stages[-1], 2 + d, _parts(pooling, d), pooling.output_size[d]))
    for d in reversed(order(pooling)):
        y = stages.pop()
        g = _returned(pooling, d, stages[-1], y, g)
    return g


def _returned(pooling: Pooling, d: int, x: Array, y: Array, g: Array) -> Array:
    """The gradient of the maxima y of x along dimension d."""
    axis, parts = 2 + d, list(_parts(pooling, d))
    whole = pooling.kernel[d] > pooling.output_size[d]
    chosen = np.empty(0) if whole else _chosen(x, y, axis, parts)
    out = np.zeros_like(x)
    for i, part in enumerate(parts):
        target = out[_at(axis, part.inputs)]
        if whole:
            hit = _position(x[_at(axis, part.inputs)], axis) == _spanning(np.arange(target.shape[axis]), x.ndim - axis)
        else:
            hit = chosen[_at(axis, part.outputs)] == i
        target += _masked(g[_at(axis, part.outputs)], hit)
    return out


def _position(window: Array, axis: int) -> Array:
    """Where a single window's first largest element is, or its last NaN."""
    nan = np.isnan(window)
    last = window.shape[axis] - 1 - np.flip(nan, axis).argmax(axis, keepdims=True)
    position: Array = np.where(nan.any(axis, keepdims=True), last, window.argmax(axis, keepdims=True))
    return position


def _chosen(x: Array, y: Array, axis: int, parts: list[Part]) -> Array:
    """Which of the parts has each window's first largest element, or its last NaN."""
    count = len(parts)
    equal = (x[_at(axis, part.inputs)] == y[_at(axis, part.outputs)] for part in parts)
    first: Array = count - _highest(y, axis, parts, equal, range(count, 0, -1))
    nan = np.isnan(y)
    if not nan.any():
        return first
    last = _highest(y, axis, parts, (np.isnan(x[_at(axis, part.inputs)]) for part in parts), range(1, count + 1))
    chosen: Array = np.where(nan, last - 1, first)
    return chosen


def _highest(y: Array, axis: int, parts: list[Part], hits: Iterator[Array], ranks: range) -> Array:
    """The highest rank among each window's hits, in as small a type as holds it: np.where takes ten times longer."""
    highest: Array = np.zeros_like(y, np.min_scalar_type(len(parts)))
    for part, hit, rank in zip(parts, hits, ranks, strict=True):
        target = highest[_at(axis, part.outputs)]
        np.maximum(target, hit * highest.dtype.type(rank), out=target)
    return highest


def _masked(g: Array, hit: Array) -> Array:
    """G where hit, else 0; by its bits, since 0 times infinity is NaN and np.where takes ten times longer."""
    bits = np.dtype(f"i{g.itemsize}")
    masked: Array = (g.view(bits) & -hit.astype(bits)).view(g.dtype)
    return masked
