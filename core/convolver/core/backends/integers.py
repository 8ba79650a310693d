"""Exact sums of integers, and what becomes of results that their type cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convolver.core.backends import Array
from convolver.core.backends.arrays import in_layout
from convolver.core.dtypes import TABLE, DType
from convolver.core.errors import IntegerOverflow
from convolver.core.geometry import Geometry
from convolver.core.parameters import Overflow

Sum = Callable[[Geometry, Array, Array], Array]

BLOCK = 1 << 14
"""Elements that are looked at, or rounded, at one time: both make several copies of them."""

FLOAT64_EXACT = 2**53
"""Below this every sum of products in float64 is exact, in any order."""


def largest(array: Array | None) -> int:
    """max|a| as a Python int; 0 for an empty array or none."""
    if array is None or not array.size:
        return 0
    if array.dtype.kind == "b":
        return 1
    return max(abs(int(array.max())), abs(int(array.min())))


def exact_sum(geometry: Geometry, x: Array, w: Array, bias: Array | None, sums: Sum) -> Array:
    """The exact sum with bias, as float64 where K max|x| max|w| + max|b| < 2^53, else as int64 or uint64.

    Sums that leave 64 bits are wrapped under overflow "wrap", which is what the narrower type wants as well.
    Raises IntegerOverflow where a sum cannot be shown to lie within 64 bits and wrapping was not asked for.
    """
    bound = geometry.sum_length * largest(x) * largest(w) + largest(bias)
    if bound < FLOAT64_EXACT:
        return _with_bias(sums(geometry, x.astype(np.float64), w.astype(np.float64)), bias)
    wide = TABLE[TABLE[geometry.operation.dtype].accumulator]
    op = geometry.operation
    modular = op.overflow == "wrap" and TABLE[op.output_dtype].exact  # a float has nothing to wrap to
    if bound >= 2**wide.bits and not modular:
        _refuse_wrapped(geometry, x, w, bias, sums, wide)
    return _with_bias(sums(geometry, x.astype(wide.numpy), w.astype(wide.numpy)), bias)


def _refuse_wrapped(geometry: Geometry, x: Array, w: Array, bias: Array | None, sums: Sum, wide: DType) -> None:
    """The float64 shadow: the wrapped sum is the true one wherever |shadow| + (K+4) 2^-53 scale < 2^bits."""
    floats = [a.astype(np.float64) for a in (x, w)]
    shadow = _with_bias(sums(geometry, *floats), bias)
    for each in floats:
        np.abs(each, out=each)
    reach = _with_bias(sums(geometry, *floats), None if bias is None else np.abs(bias.astype(np.float64)))
    reach *= (geometry.sum_length + 4) * 2.0**-53
    np.copysign(reach, shadow, out=reach)
    reach += shadow
    shadow, reach = (in_layout(geometry.operation, each) for each in (shadow, reach))
    index = _first(lambda block: np.abs(block) >= 2.0**wide.bits, reach)
    if index:
        raise IntegerOverflow(
            f"output{list(index)} is about {shadow[index]:.6g}, beyond what {wide.name} sums can hold"
        )


def _with_bias(sums: Array, bias: Array | None) -> Array:
    if bias is not None:
        sums += bias.astype(sums.dtype).reshape(-1, *(1,) * (sums.ndim - 2))
    return sums


def fitted(values: Array, dtype: DType, overflow: Overflow) -> Array:
    """Exact integers (float64, int64 or uint64; they may be overwritten) in `dtype`, contiguous.

    bool is sum != 0; a float type rounds once. Raises IntegerOverflow, under "error", naming the first index and its
    value.
    """
    if dtype.kind == "bool":
        return np.not_equal(values, 0, order="C")
    if not dtype.exact:
        return _rounded(values, dtype)
    least, most = (-(2**dtype.bits) if dtype.kind == "int" else 0), 2**dtype.bits - 1
    if overflow == "wrap":
        whole = values.astype(np.int64) if values.dtype.kind == "f" else values
        return whole.astype(dtype.numpy, "C", copy=False)
    if values.size and not (int(values.min()) >= least and int(values.max()) <= most):
        low, high = _within_reach(values, least, most)
        if overflow == "error":
            index = _first(lambda block: (block < low) | (block > high), values)
            raise IntegerOverflow(
                f"output{list(index)} is {int(values[index])}, which {dtype.name} ({least} to {most}) does not hold"
            )
        np.clip(values, low, high, out=values)
    return values.astype(dtype.numpy, "C")


def _first(wrong: Callable[[Array], NDArray[np.bool_]], values: Array) -> tuple[int, ...]:
    """The index of the first of the values that is wrong; empty where none is."""
    start = 0
    blocks: Any = np.nditer(values, ["external_loop", "buffered"], order="C", buffersize=BLOCK)
    for block in blocks:
        found = wrong(block)
        if found.any():
            return tuple(int(i) for i in np.unravel_index(start + found.argmax(), values.shape))
        start += block.size
    return ()


def _within_reach(values: Array, least: int, most: int) -> tuple[int, int]:
    """The bounds as far as the values' own type has them; NumPy refuses to compare with others."""
    if values.dtype.kind == "f":
        return least, most
    own = np.iinfo(values.dtype)
    return max(least, int(own.min)), min(most, int(own.max))


def _rounded(values: Array, dtype: DType) -> Array:
    """The values rounded once. ml_dtypes goes by way of float32, which is therefore rounded to odd (Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008).
    """
    if dtype.numpy.isbuiltin == 1:
        return values.astype(dtype.numpy, "C")
    out = np.empty(values.shape, dtype.numpy)
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    blocks: Any = np.nditer([values, out], flags, [["readonly"], ["writeonly"]], order="C", buffersize=BLOCK)
    with blocks:
        for block, target in blocks:
            target[...] = _rounded_to_odd(block)
    return out


def _rounded_to_odd(values: Array) -> NDArray[np.float32]:
    near = values.astype(np.float32)
    towards = np.nextafter(near, np.where(values > near, np.float32(np.inf), np.float32(-np.inf)))
    even = near.view(np.uint32) % 2 == 0
    return np.where((near != values) & even, towards, near)
