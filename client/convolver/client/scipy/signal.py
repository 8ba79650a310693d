"""scipy.signal.convolve and correlate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from convolver.client._interchange import to_array
from convolver.client.scipy._casts import c_cast
from convolver.client.scipy._convolved import convolved

if TYPE_CHECKING:
    from convolver.client import Client
    from convolver.client._interchange import AnyArray
    from convolver.core.parameters import Algorithm, Parameters
    from convolver.core.tensors import Array

__all__ = ["convolve", "correlate"]

Mode = Literal["full", "valid", "same"]
Method = Literal["auto", "direct", "fft"]


def convolve(
    in1: AnyArray, in2: AnyArray, mode: Mode = "full", method: Method = "auto", *, client: Client | None = None
) -> Any:  # noqa: ANN401 - an array, or NumPy's scalar for two scalars, as SciPy has it
    """scipy.signal.convolve: the convolution of two arrays of equal rank, in the type that NumPy promotes theirs to.

    Args:
        in1: The first array. Its size is that of mode `same`.
        in2: The second array.
        mode: `full`, wherever they overlap; `valid`, where one lies within the other; `same`, the middle of `full`.
        method: `direct`, `fft`, or `auto`, which the server decides by cost; never an FFT for integers.
        client: Who computes. None: this process's own client.

    Integers are exact and wrap around; with `fft` they are rounded. Raises ValueError as SciPy does, Unsupported for
    more than three dimensions (those in which in2 has length 1 do not count), else as `Client.convolve`.
    """
    volume, kernel = to_array(in1), to_array(in2)
    if volume.ndim != kernel.ndim:
        raise ValueError("volume and kernel should have the same dimensionality")
    return _convolution(volume, kernel, mode, method, client)


def correlate(
    in1: AnyArray, in2: AnyArray, mode: Mode = "full", method: Method = "auto", *, client: Client | None = None
) -> Any:  # noqa: ANN401 - as above
    """scipy.signal.correlate: the cross-correlation of two arrays of equal rank, with in2 conjugated; otherwise as
    `convolve`.
    """
    first, second = to_array(in1), to_array(in2)
    if first.ndim != second.ndim:
        raise ValueError("in1 and in2 should have the same dimensionality")
    turned = np.asarray(np.flip(second))
    return _convolution(first, turned.conj() if turned.dtype.kind == "c" else turned, mode, method, client)


def _convolution(volume: Array, kernel: Array, mode: Mode, method: Method, client: Client | None) -> Any:  # noqa: ANN401 - as above
    dtype = np.result_type(volume.dtype, kernel.dtype)
    if volume.ndim == 0:
        return _sums(volume.astype(dtype), kernel.astype(dtype), [], "direct", client)[()]
    _check_words(mode, method)
    window = _window(mode, volume.shape, kernel.shape)
    if 0 in (volume.size, kernel.size):
        return _of_nothing(volume, kernel, mode, dtype)
    if kernel.size > volume.size:  # the smaller one slides: the same sums, fewer products with padding
        volume, kernel = kernel, volume
    padding = [
        (k - 1 - start, start + count - n)
        for n, k, (start, count) in zip(volume.shape, kernel.shape, window, strict=True)
    ]
    if method == "fft" and dtype.kind in "biu":
        sums = _sums(volume.astype(np.float64), kernel.astype(np.float64), padding, method, client)
        return np.rint(sums) != 0 if dtype.kind == "b" else c_cast(np.rint(sums), dtype)
    return _sums(volume.astype(dtype, copy=False), kernel.astype(dtype, copy=False), padding, method, client)


def _sums(
    volume: Array, kernel: Array, padding: list[tuple[int, int]], algorithm: Algorithm, client: Client | None
) -> Array:
    parameters: Parameters = {"flip": True, "overflow": "wrap", "algorithm": algorithm}
    sums: Array = convolved(client, volume[None], kernel[None, None], padding, parameters)[0]
    return sums


def _check_words(mode: object, method: object) -> None:
    if mode not in get_args(Mode):
        raise ValueError("Acceptable mode flags are 'valid', 'same', or 'full'.")
    if method not in get_args(Method):
        raise ValueError("Acceptable method flags are 'auto', 'direct', or 'fft'.")


def _window(mode: Mode, first: tuple[int, ...], second: tuple[int, ...]) -> list[tuple[int, int]]:
    """Per axis, where the output begins in the full convolution, and its length."""
    pairs = list(zip(first, second, strict=True))
    if mode == "full":
        return [(0, n + k - 1) for n, k in pairs]
    if mode == "same":
        return [((k - 1) // 2, n) for n, k in pairs]
    if any(n < k for n, k in pairs) and any(n > k for n, k in pairs):
        raise ValueError("For 'valid' mode, one must be at least as large as the other in every dimension")
    return [(min(pair) - 1, max(pair) - min(pair) + 1) for pair in pairs]


def _of_nothing(volume: Array, kernel: Array, mode: Mode, dtype: np.dtype[Any]) -> Array:
    """What SciPy makes of an empty array, by its direct method."""
    if mode == "same" and kernel.size:
        return np.zeros(volume.shape, dtype)
    if mode == "valid" and volume.ndim > 1:
        return np.zeros([count for _, count in _window(mode, volume.shape, kernel.shape)], dtype)
    name, shape = ("v", kernel.shape) if volume.size else ("a", volume.shape)
    raise ValueError(f"{name} cannot be empty: its shape is {shape}")
