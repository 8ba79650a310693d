"""The sums of scipy.ndimage's filters: double precision throughout, weights of 2^-52 and less left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convolver.client.scipy._casts import c_cast
from convolver.client.scipy._convolved import convolved
from convolver.core import dtypes

if TYPE_CHECKING:
    from convolver.client import Client
    from convolver.core.parameters import PaddingMode, Parameters
    from convolver.core.tensors import Array

EXACT = 2**53
"""Integers below it are exact as doubles, and so are their sums."""


@dataclass(frozen=True)
class Border:
    """What stands around an image: `padding` elements (begin, end) along each axis, by `mode`; under "constant" the
    `value`, whose parts stand around the image's parts.
    """

    padding: list[tuple[int, int]]
    mode: PaddingMode
    value: complex

    @classmethod
    def of(cls, padding: list[tuple[int, int]], mode: PaddingMode, value: complex) -> Border:
        """A border whose value counts under "constant" alone."""
        return cls(padding, mode, value if mode == "constant" else 0.0)

    def parameters(self) -> Parameters:
        """What the service is told where the value's real part is all of it."""
        if self.mode == "constant" and self.value:
            return {"padding_mode": "constant", "padding_value": self.value.real}
        return {"padding_mode": "zeros" if self.mode == "constant" else self.mode}

    def around(self, channels: Array) -> Array:
        """`channels` with the value of each, its real or imaginary part, around it."""
        values = (self.value.real, self.value.imag)
        padded = [np.pad(c, self.padding, constant_values=v) for c, v in zip(channels, values, strict=False)]
        return np.stack(padded)


class Stencil(NamedTuple):
    """A kernel, of as many dimensions as the image, and what stands around the image; `flip` turns the kernel."""

    kernel: Array
    border: Border
    flip: bool
    client: Client | None


def filtered(image: Array, stencil: Stencil, dtype: np.dtype[Any]) -> Array:
    """The image filtered, its sums cast to `dtype` as C does."""
    if dtype.kind == "c":
        sums = _doubles(_parts(image), _matrix(image, stencil.kernel), stencil, {})
        return c_cast(np.ascontiguousarray(np.moveaxis(sums, 0, -1)).view(np.complex128)[..., 0], dtype)
    whole = _whole_types(image, stencil) if dtype.kind in "biu" else None
    if whole is not None:
        return c_cast(_integers(image, stencil, whole), dtype)
    # SciPy cuts fractions off, so that the last bit of a sum decides: the reference adds in SciPy's order.
    exact: Parameters = {"backend": "reference", "algorithm": "direct"} if dtype.kind in "biu" else {}
    return c_cast(_doubles(_parts(image), _matrix(image, stencil.kernel), stencil, exact)[0], dtype)


class _Whole(NamedTuple):
    """The types in which integers travel, and in which their sums come back."""

    operand: np.dtype[Any]
    sums: np.dtype[Any]


def _integers(image: Array, stencil: Stencil, whole: _Whole) -> Array:
    operands = [array.astype(whole.operand) for array in (image[None], stencil.kernel[None, None])]
    parameters: Parameters = {
        **stencil.border.parameters(),
        "flip": stencil.flip,
        "output_dtype": dtypes.of(whole.sums).name,
    }
    sums: Array = convolved(stencil.client, operands[0], operands[1], stencil.border.padding, parameters)[0]
    return sums


def _whole_types(image: Array, stencil: Stencil) -> _Whole | None:
    """None unless all is integers, with sums that doubles hold exactly, in types that there are."""
    kernel, value = stencil.kernel, stencil.border.value.real
    if image.dtype.kind not in "biu" or not value.is_integer() or not _is_whole(kernel):
        return None
    largest = max(abs(int(end)) for end in (image.min(), image.max(), value))
    bound = largest * int(np.abs(kernel).sum())
    if bound >= EXACT:
        return None
    limits = (0, 1) if image.dtype.kind == "b" else (np.iinfo(image.dtype).min, np.iinfo(image.dtype).max)
    ends = [int(end) for end in (*limits, kernel.min(), kernel.max(), value)]
    operand = _holding(min(ends), max(ends))
    sums = _holding(-bound if min(ends) < 0 else 0, bound)
    return None if operand.kind == "O" else _Whole(operand, np.promote_types(operand, sums))


def _is_whole(kernel: Array) -> bool:
    return bool(np.isfinite(kernel).all()) and np.array_equal(kernel, np.rint(kernel))


def _holding(least: int, most: int) -> np.dtype[Any]:
    """The narrowest integer type with both; NumPy says object where there is none."""
    return np.min_scalar_type(min(least, -most - 1) if least < 0 else most)


def _significant(kernel: Array) -> Array:
    """The weights that SciPy counts, as doubles; others, NaN among them, are 0."""
    doubles = kernel.astype(np.float64)
    return np.where(np.abs(doubles) > np.finfo(np.float64).eps, doubles, 0.0)


def _parts(image: Array) -> Array:
    """The real and, if there is one, the imaginary part (C, *S)."""
    parts = [image.real, image.imag] if image.dtype.kind == "c" else [image]
    return np.stack(parts).astype(np.float64)


def _matrix(image: Array, kernel: Array) -> Array:
    """The weights (O, C/groups, *K) for the image's parts: with a real kernel each part is a group of its own."""
    if kernel.dtype.kind != "c":
        return np.stack([_significant(kernel)] * (2 if image.dtype.kind == "c" else 1))[:, None]
    real, imaginary = _significant(kernel.real), _significant(kernel.imag)
    matrix = np.array([[real, -imaginary], [imaginary, real]])
    return matrix if image.dtype.kind == "c" else matrix[:, :1]


def _doubles(channels: Array, matrix: Array, stencil: Stencil, execution: Parameters) -> Array:
    """The sums (O, *S) of `channels` (C, *S) with `matrix` (O, C/groups, *K), both doubles.

    Raises as Client.convolve does.
    """
    border = stencil.border
    special = bool((matrix == 0).any()) and _has_special(channels, border)
    differ = len(channels) > 1 and border.value.real != border.value.imag
    if border.mode == "constant" and (special or differ):
        channels = border.around(channels)
        border = replace(border, padding=[(0, 0)] * len(border.padding), value=0)
    if special:
        channels, matrix = _told_apart(channels), np.concatenate([matrix, np.sign(matrix), matrix != 0])
    groups = len(channels) // matrix.shape[1]
    parameters: Parameters = {**border.parameters(), "flip": stencil.flip, "groups": groups, **execution}
    sums = convolved(stencil.client, channels, matrix, border.padding, parameters)
    return _put_together(sums) if special else sums


def _has_special(channels: Array, border: Border) -> bool:
    """Whether there is an infinity or NaN."""
    return not (np.isfinite(channels).all() and np.isfinite(border.value))


def _told_apart(channels: Array) -> Array:
    """(3C, *S): what is finite, the signs of infinities, and 1 for each infinity and NaN.

    SciPy multiplies nothing by a weight of 0, so that NaN does not spread there. Summed with the weights, with their
    signs and with 1 for each, these tell what every sum has met.
    """
    finite, infinite = np.isfinite(channels), np.isinf(channels)
    signs = np.where(infinite, np.sign(channels), 0.0)
    return np.concatenate([np.where(finite, channels, 0.0), signs, ~finite])


def _put_together(sums: Array) -> Array:
    """A sum that met no infinity or NaN as it is, infinities of one sign alone as that, and otherwise NaN."""
    finite, signs, count = np.split(sums, 3)
    signs, count = np.rint(signs), np.rint(count)
    met = [count == 0, signs == count, signs == -count]
    return np.select(met, [finite, np.full_like(finite, np.inf), np.full_like(finite, -np.inf)], np.nan)
