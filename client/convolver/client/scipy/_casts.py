"""Doubles in other types as C makes them, on which SciPy relies. NumPy's own casts differ from one processor to the
next for what does not fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convolver.core.tensors import Array


def c_cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Doubles, or integers below 2^53, in `dtype`: integers cut the fraction off and wrap around; bool is the lowest
    byte of the whole part != 0.

    What C leaves undefined (beyond 2^31 into 32 bits and narrower, beyond 2^63 into others, NaN) is what x86-64 gives.
    """
    if values.dtype == dtype:
        return values
    if dtype.kind == "b":
        return np.not_equal(c_cast(values, np.dtype(np.uint8)), 0)
    if dtype.kind not in "iu":
        with np.errstate(over="ignore"):  # C says nothing either
            return values.astype(dtype)
    doubles = values.astype(np.float64, copy=False)
    if dtype.kind == "u" and dtype.itemsize == 8:
        return _unsigned_64(doubles).astype(dtype)
    limit = 2.0**63 if dtype.itemsize == 8 or (dtype.kind == "u" and dtype.itemsize == 4) else 2.0**31
    return np.where(np.abs(doubles) < limit, doubles, -limit).astype(np.int64).astype(dtype)


def _unsigned_64(doubles: Array) -> NDArray[np.uint64]:
    size = np.abs(doubles)
    whole = np.where(np.isnan(size), 2.0**63, np.where(size < 2.0**64, size, 0.0)).astype(np.uint64)
    return np.where(doubles < 0, np.uint64(0) - whole, whole)
