"""Exact sums of integers, and what becomes of results that their type cannot hold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from convolver.core.backends import Array
from convolver.core.backends.arrays import in_layout
from convolver.core.dtypes import TABLE, DType
from convolver.core.errors import IntegerOverflow
from convolver.core.geometry import Geometry
from convolver.core.parameters import Overflow

Sum = Callable[[Geometry, Array, Array], Array]

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
    result = _with_bias(sums(geometry, x.astype(wide.numpy), w.astype(wide.numpy)), bias)
    op = geometry.operation
    modular = op.overflow == "wrap" and TABLE[op.output_dtype].exact  # a float has nothing to wrap to
    if bound >= 2**wide.bits and not modular:
        _refuse_wrapped(geometry, x, w, bias, sums, wide)
    return result


def _refuse_wrapped(geometry: Geometry, x: Array, w: Array, bias: Array | None, sums: Sum, wide: DType) -> None:
    """The float64 shadow: the wrapped sum is the true one wherever |shadow| + (K+4) 2^-53 scale < 2^bits."""
    floats = [a.astype(np.float64) for a in (x, w)]
    shadow = _with_bias(sums(geometry, *floats), bias)
    scale = _with_bias(sums(geometry, *map(np.abs, floats)), None if bias is None else np.abs(bias.astype(np.float64)))
    scale *= (geometry.sum_length + 4) * 2.0**-53
    scale += np.abs(shadow)
    unsure = scale >= 2.0**wide.bits
    if unsure.any():
        shadow, unsure = (in_layout(geometry.operation, each) for each in (shadow, unsure))
        index = tuple(int(i) for i in np.argwhere(unsure)[0])
        raise IntegerOverflow(
            f"output{list(index)} is about {shadow[index]:.6g}, beyond what {wide.name} sums can hold"
        )


def _with_bias(sums: Array, bias: Array | None) -> Array:
    if bias is not None:
        sums += bias.astype(sums.dtype).reshape(-1, *(1,) * (sums.ndim - 2))
    return sums


def fitted(values: Array, dtype: DType, overflow: Overflow) -> Array:
    """Exact integers (float64, int64 or uint64) in `dtype`.

    bool is sum != 0; a float type rounds once. Raises IntegerOverflow, under "error", naming the first index and its
    value.
    """
    if dtype.kind == "bool":
        return np.not_equal(values, 0)
    if not dtype.exact:
        return _rounded(values, dtype)
    least, most = (-(2**dtype.bits) if dtype.kind == "int" else 0), 2**dtype.bits - 1
    if overflow == "wrap":
        whole = values.astype(np.int64) if values.dtype.kind == "f" else values
        return whole.astype(dtype.numpy)
    if not values.size or (int(values.min()) >= least and int(values.max()) <= most):
        return values.astype(dtype.numpy)
    low, high = _within_reach(values, least, most)
    if overflow == "saturate":
        return np.clip(values, low, high).astype(dtype.numpy)
    wrong = np.argwhere((values < low) | (values > high))[0]
    index = tuple(int(i) for i in wrong)
    raise IntegerOverflow(
        f"output{list(index)} is {int(values[index])}, which {dtype.name} ({least} to {most}) does not hold"
    )


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
        return values.astype(dtype.numpy)
    near = values.astype(np.float32)
    towards = np.nextafter(near, np.where(values > near, np.float32(np.inf), np.float32(-np.inf)))
    even = near.view(np.uint32) % 2 == 0
    return np.where((near != values) & even, towards, near).astype(dtype.numpy)
