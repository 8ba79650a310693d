"""The arguments of scipy.ndimage's filters, checked as SciPy checks them, with its errors."""

from __future__ import annotations

import operator
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from convolver.core.parameters import PaddingMode
    from convolver.core.tensors import Array

    Pair = tuple[int, int]

_MODES: dict[object, PaddingMode] = {
    "reflect": "symmetric",
    "grid-mirror": "symmetric",
    "mirror": "reflect",
    "nearest": "replicate",
    "wrap": "circular",
    "grid-wrap": "circular",
    "constant": "constant",
    "grid-constant": "constant",
}


def padding_mode(mode: object) -> PaddingMode:
    """The service's word for SciPy's."""
    if not isinstance(mode, str) and np.iterable(mode):
        raise RuntimeError("A sequence of modes is not supported")
    if mode not in _MODES:
        raise RuntimeError(f"boundary mode not supported: {mode!r:.80} is none of {', '.join(map(str, _MODES))}")
    return _MODES[mode]


def checked_axes(axes: Any, ndim: int) -> tuple[int, ...]:  # noqa: ANN401 - None, an integer or several
    """The axes to filter along, counted from 0, as they were given."""
    if axes is None:
        return tuple(range(ndim))
    given = [operator.index(axis) for axis in (axes if np.iterable(axes) else (axes,))]
    for axis in given:
        if not -ndim <= axis < ndim:
            raise ValueError(f"specified axis: {axis} is out of range")
    counted = tuple(axis % ndim for axis in given)
    if len(set(counted)) != len(counted):
        raise ValueError("axes must be unique")
    return counted


def spread_kernel(kernel: Array, axes: tuple[int, ...], ndim: int) -> Array:
    """The kernel with `ndim` dimensions: of length 1 along the axes that are not filtered."""
    if kernel.ndim != len(axes) or 0 in kernel.shape:
        sizes = [size for size in kernel.shape if size]
        raise RuntimeError(f"weights.ndim ({len(sizes)}) must match len(axes) ({len(axes)})")
    return np.expand_dims(kernel, tuple(axis for axis in range(ndim) if axis not in axes))


def borders(kernel: tuple[int, ...], origin: Any, axes: tuple[int, ...], *, flip: bool) -> list[Pair]:  # noqa: ANN401 - an integer or several
    """The padding that puts the kernel's middle, moved by `origin`, on each element."""
    origins = [0] * len(kernel)
    # As SciPy has it, the order of axes counts for the origins if some axis is left out, and otherwise does not.
    places = axes if len(axes) < len(kernel) else range(len(kernel))
    for axis, value in zip(places, _spread_origin(origin, len(axes)), strict=True):
        origins[axis] = value
    return [_border(size, value, flip=flip) for size, value in zip(kernel, origins, strict=True)]


def _spread_origin(origin: Any, count: int) -> list[int]:  # noqa: ANN401 - as above
    given = list(origin) if np.iterable(origin) else [origin] * count
    if len(given) != count:
        raise RuntimeError(f"sequence argument must have length equal to input rank: origin has {len(given)}")
    return [operator.index(value) for value in given]


def _border(size: int, origin: int, *, flip: bool) -> Pair:
    if flip:
        origin = -origin - (size % 2 == 0)
    if not -(size // 2) <= origin <= (size - 1) // 2:
        raise ValueError(
            "Invalid origin; origin must satisfy -(weights.shape[k] // 2) <= origin[k] <= (weights.shape[k]-1) // 2"
        )
    begin = size // 2 + origin
    return begin, size - 1 - begin


def checked_value(cval: Any, image: Array, *, complex_output: bool) -> complex:  # noqa: ANN401 - a number of NumPy's or Python's
    """The constant beyond the edges."""
    if not complex_output:
        return float(cval)
    if image.dtype.kind != "c" and np.iscomplexobj(cval):
        raise ValueError("Cannot provide a complex-valued cval when the input is real.")
    return complex(cval)


def output_array(output: Any, image: Array, *, complex_output: bool) -> Array:  # noqa: ANN401 - an array, a type, its name or None
    """The array to write to: the caller's own, or a new one of the type that was asked for, else of the image's."""
    if output is None:
        dtype = np.promote_types(image.dtype, np.complex64) if complex_output else np.dtype(image.dtype.name)
    elif isinstance(output, type | np.dtype | str):
        dtype = _output_type(output, complex_output=complex_output)
    else:
        return _checked_output(np.asarray(output), image.shape, complex_output=complex_output)
    return np.zeros(image.shape, dtype)


def _output_type(output: Any, *, complex_output: bool) -> np.dtype[Any]:  # noqa: ANN401 - a type or its name
    dtype: np.dtype[Any] = np.dtype(output)
    if isinstance(output, str) and not issubclass(dtype.type, np.number):
        raise RuntimeError("output must have numeric dtype")  # noqa: TRY004 - as SciPy does
    if not complex_output or dtype.kind == "c":
        return dtype
    if isinstance(output, str):
        raise RuntimeError("output must have complex dtype")  # noqa: TRY004 - as SciPy does
    warnings.warn("promoting specified output dtype to complex", stacklevel=5)
    return np.promote_types(dtype, np.complex64)


def _checked_output(output: Array, shape: tuple[int, ...], *, complex_output: bool) -> Array:
    if output.shape != shape:
        raise RuntimeError(f"output shape not correct: it is {output.shape}, the input's {shape}")
    if complex_output and output.dtype.kind != "c":
        raise RuntimeError("output must have complex dtype")
    if not output.flags.writeable:
        raise ValueError("output array is read-only.")
    return output


def check_types(image: Array, output: Array, *, complex_output: bool) -> None:
    """SciPy has these filters for booleans, integers, float32 and float64, and for complex numbers of those."""
    for array in (image, output):
        kind, size = array.dtype.kind, array.dtype.itemsize
        real = kind in "biu" or (kind, size) in (("f", 4), ("f", 8))
        if not real and not (complex_output and (kind, size) in (("c", 8), ("c", 16))):
            raise RuntimeError(f"array type not supported: {array.dtype}")
