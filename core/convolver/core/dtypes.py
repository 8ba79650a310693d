"""Element types: one table from a type's name to all that is known of it."""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from convolver.core.errors import InvalidConvolution, shown

Kind = Literal["bool", "int", "uint", "float", "complex"]

Integers = Literal["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
Floats = Literal["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float32", "float64"]
DTypeName = Integers | Floats | Literal["complex64", "complex128"]


@dataclass(frozen=True, slots=True)
class DType:
    """One element type. `bits` counts a float's significand with its hidden bit (unit roundoff 2**-bits) or an
    integer's bits of value, `exponent` a float's exponent bits (0 for integers), both of one part of a complex number.
    `accumulator` names the type of sums.
    """

    name: DTypeName
    kind: Kind
    itemsize: int
    bits: int
    exponent: int
    accumulator: DTypeName
    numpy: np.dtype[np.generic]

    @property
    def exact(self) -> bool:
        """Whether it holds integers (or booleans) alone."""
        return self.kind in ("bool", "int", "uint")


def _row(name: DTypeName, kind: Kind, bits: int, exponent: int, accumulator: DTypeName, numpy: DTypeLike) -> DType:
    dtype: np.dtype[np.generic] = np.dtype(numpy)
    return DType(name, kind, dtype.itemsize, bits, exponent, accumulator, dtype)


TABLE: dict[str, DType] = {
    row.name: row
    for row in (
        _row("bool", "bool", 1, 0, "int64", np.bool_),
        _row("int8", "int", 7, 0, "int64", np.int8),
        _row("int16", "int", 15, 0, "int64", np.int16),
        _row("int32", "int", 31, 0, "int64", np.int32),
        _row("int64", "int", 63, 0, "int64", np.int64),
        _row("uint8", "uint", 8, 0, "uint64", np.uint8),
        _row("uint16", "uint", 16, 0, "uint64", np.uint16),
        _row("uint32", "uint", 32, 0, "uint64", np.uint32),
        _row("uint64", "uint", 64, 0, "uint64", np.uint64),
        _row("float16", "float", 11, 5, "float32", np.float16),
        _row("bfloat16", "float", 8, 8, "float32", ml_dtypes.bfloat16),
        _row("float8_e4m3fn", "float", 4, 4, "float32", ml_dtypes.float8_e4m3fn),
        _row("float8_e5m2", "float", 3, 5, "float32", ml_dtypes.float8_e5m2),
        _row("float32", "float", 24, 8, "float32", np.float32),
        _row("float64", "float", 53, 11, "float64", np.float64),
        _row("complex64", "complex", 24, 8, "complex64", np.complex64),
        _row("complex128", "complex", 53, 11, "complex128", np.complex128),
    )
}

_BY_NUMPY = {row.numpy: row for row in TABLE.values()}


def named(name: object, field: str = "dtype") -> DType:
    """The type of that name.

    Raises InvalidConvolution for any other name.
    """
    row = TABLE.get(name) if isinstance(name, str) else None
    if row is None:
        raise InvalidConvolution(f"{field} is {shown(name)}, which is none of {', '.join(TABLE)}", field)
    return row


def of(array_dtype: DTypeLike, field: str = "dtype") -> DType:
    """The type of a NumPy dtype, of either byte order.

    Raises InvalidConvolution for a dtype that has no name here (strings, objects, long double...).
    """
    dtype = np.dtype(array_dtype)
    row = _BY_NUMPY.get(dtype.newbyteorder("=") if dtype.byteorder == ">" else dtype)
    if row is None:
        raise InvalidConvolution(f"{field} has dtype {dtype}, which is none of {', '.join(TABLE)}", field)
    return row


def is_wider(wide: DType, narrow: DType) -> bool:
    """Whether `wide` holds every value of `narrow` exactly."""
    if narrow.kind == "bool" or wide is narrow:
        return True
    if narrow.exact and wide.exact:
        return wide.bits >= narrow.bits and (wide.kind, narrow.kind) in {
            ("int", "int"),
            ("uint", "uint"),
            ("int", "uint"),
        }
    if wide.exact or (narrow.kind == "complex" and wide.kind != "complex"):
        return False
    return wide.bits >= narrow.bits and wide.exponent >= narrow.exponent


def holds(dtype: DType, value: float) -> bool:
    """Whether the type has this very value."""
    if dtype.exact:
        least = -(2**dtype.bits) if dtype.kind == "int" else 0
        return value.is_integer() and least <= int(value) < 2**dtype.bits
    with np.errstate(all="ignore"):
        rounded = complex(np.array(value).astype(dtype.numpy)[()])
    return rounded == value or (math.isnan(value) and cmath.isnan(rounded))


def accumulator(input_dtype: DType, output_dtype: DType) -> DType:
    """The type that sums of products of `input_dtype` are held in on the way to `output_dtype`.

    Floats narrower than float32 accumulate in float32; a wider output widens the sums too (float32 in, float64 out:
    float64). Complex output of real input is summed as reals. Integers are summed exactly (int64 or uint64 here).
    """
    if input_dtype.exact:
        return TABLE[input_dtype.accumulator]
    wide = TABLE[output_dtype.accumulator]
    if input_dtype.kind == "float" and wide.kind == "complex":
        return TABLE["float32" if wide.bits == 24 else "float64"]
    return wide
