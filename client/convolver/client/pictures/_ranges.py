"""Results to brightness: a convolution's values leave the range of the picture, and these map them back into it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from convolver.client.pictures.errors import FilterError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from convolver.client.pictures._choices import Range

    Values = NDArray[np.floating[Any]]
    Mapping = Callable[[Values], Values]


def map_range(results: Sequence[Values], mapping: Range, dtype: np.dtype[Any]) -> list[NDArray[Any]]:
    """Map the results of one picture into the range of `dtype`: all of an integer type, 0 to 1 of a float.

    - `clip`: what lies outside becomes the nearest end.
    - `absolute`: the sign is dropped, then as clip. For derivatives.
    - `offset`: 0 becomes the middle (128 of uint8, 32768 of uint16, 0 of signed types, 0.5 of floats), then as clip.
      For results of both signs.
    - `stretch`: the smallest of all results becomes the lower end, the largest the upper one; equal ones the lower.

    Integers are rounded to the nearest, halves to the even one.

    Args:
        results: Arrays of any shapes, mapped by one and the same function. They may be overwritten.
        mapping: How.
        dtype: The type of what is returned.

    Raises:
        FilterError: A value for an integer type is not finite.
    """
    low, high = _ends(dtype)
    if mapping == "stretch":
        change = _stretch(results, low, high)
    elif mapping == "offset":
        middle = (low + high + 1) // 2 if dtype.kind in "iu" else 0.5
        change = lambda values: values + middle  # noqa: E731  # three small functions, one of which is used
    else:
        change = np.abs if mapping == "absolute" else np.asarray
    return [_quantise(change(values), low, high, dtype) for values in results]


def _ends(dtype: np.dtype[Any]) -> tuple[int, int]:
    if dtype.kind not in "iu":
        return 0, 1
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def _stretch(results: Sequence[Values], low: int, high: int) -> Mapping:
    """The affine function from the extremes of all finite results to the ends."""
    finite = [values[np.isfinite(values)] for values in results]
    smallest = min((float(values.min()) for values in finite if values.size), default=0.0)
    largest = max((float(values.max()) for values in finite if values.size), default=0.0)
    span = largest - smallest or 1.0
    return lambda values: (values - smallest) / span * (high - low) + low


def _quantise(values: Values, low: int, high: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    if dtype.kind in "iu":
        if not np.isfinite(values).all():
            raise FilterError(f"a result is not finite, which no {dtype} can hold")
        values = np.rint(values)
        high = _largest_below(high, values.dtype)
    return np.clip(values, low, high).astype(dtype, copy=False)


def _largest_below(value: int, dtype: np.dtype[Any]) -> int:
    """The largest number of a float type that does not exceed `value`: 2^63 - 1 itself is none."""
    nearest = dtype.type(value)
    return int(nearest if int(nearest) <= value else np.nextafter(nearest, dtype.type(0)))
