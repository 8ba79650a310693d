"""Filter arrays and pictures through the service, and bring the results back into the range of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from convolver.client.pictures._pictures import Page, Picture
from convolver.client.pictures._pieces import Band, bands, centred, plane_groups
from convolver.client.pictures._ranges import map_range
from convolver.client.pictures.errors import FilterError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from convolver.client.pictures._choices import PaddingMode, PicturePadding, Range
    from convolver.client.pictures._convolver import Convolver
    from convolver.client.pictures._kernels import Kernel
    from convolver.core.parameters import Padding, Parameters

    Values = NDArray[np.floating[Any]]

EXACT = 2**53
"""Integers up to here are exact in float64."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What is done to every picture.

    Attributes:
        kernel: 2-D, applied to each page, or 3-D, applied to the volume that the pages are.
        range: How results become brightness. None: integers as the kernel suggests, floats not at all.
        padding: `same` keeps the size, `valid` computes only where the kernel lies inside, `full` wherever it touches.
        padding_mode: What lies beyond the edge, in the service's vocabulary.
        padding_value: What lies there in mode `constant`, in the picture's own unit.
        flip: Turn the kernel by 180 degrees: true convolution instead of cross-correlation.
        backend: The service's back end.
    """

    kernel: Kernel
    range: Range | None = None
    padding: PicturePadding = "same"
    padding_mode: PaddingMode = "reflect"
    padding_value: float = 0.0
    flip: bool = False
    backend: str = "auto"

    def parameters(self, padding: Padding, dtype: np.dtype[Any]) -> Parameters:
        """What the service is told of a call with this padding, of samples of this type."""
        given: Parameters = {
            "padding": padding,
            "padding_mode": self.padding_mode,
            "flip": self.flip,
            "backend": self.backend,
        }
        if self.padding_mode == "constant":
            given["padding_value"] = float(dtype.type(self.padding_value))
        return given


def filter_array(convolver: Convolver, array: NDArray[Any], how: Filter) -> NDArray[Any]:
    """Filter along the last 2 axes of an array, or the last 3 with a 3-D kernel; every axis before them is left alone.

    Integers come back in their own type and range. Floats come back as they are computed unless a range is asked for.

    Args:
        convolver: Who computes, in float32, or in float64 for 32 bits and more.
        array: Shape (..., height, width), with a 3-D kernel (..., pages, height, width). Integers up to 2^53, float16,
            float32 or float64.
        how: What to do.

    Returns:
        An array of the same type and leading axes.

    Raises:
        FilterError: The array has another type or too few axes, or a result that no integer can hold.
        ConvolverError: The service refuses or cannot be reached.
    """
    return _mapped([_convolved(convolver, array, how)], array.dtype, how)[0]


def filter_picture(convolver: Convolver, picture: Picture, how: Filter) -> Picture:
    """Filter every channel on its own: each page by a 2-D kernel, the volume of all pages by a 3-D one.

    Alpha is kept and not filtered; `valid` cuts it and `full` extends it with the samples. `stretch` maps all channels
    and pages alike, so that colours and pages stay comparable.

    Args:
        convolver: Who computes, as for filter_array.
        picture: Pages of one type; of one size too for a 3-D kernel.
        how: What to do.

    Raises:
        FilterError: A 3-D kernel meets a single page or pages that differ, or as for filter_array.
        ConvolverError: The service refuses or cannot be reached.
    """
    by_volume = len(how.kernel.shape) == 3
    blocks = [_volume(picture)] if by_volume else [(page.samples, page.alpha) for page in picture.pages]
    results = _mapped([_convolved(convolver, samples, how) for samples, _ in blocks], picture.pages[0].dtype, how)
    alphas = [None if alpha is None else centred(alpha, how.kernel.shape, how.padding) for _, alpha in blocks]
    if by_volume:
        results = list(np.moveaxis(results[0], 1, 0))
        alphas = [None] * len(results) if alphas[0] is None else list(alphas[0])
    return picture.with_pages([Page(samples, alpha) for samples, alpha in zip(results, alphas, strict=True)])


def _volume(picture: Picture) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Samples, shape (channels, pages, height, width), and alpha, shape (pages, height, width)."""
    if len(picture.pages) < 2:
        raise FilterError("a 3-D kernel needs a volume: a TIFF with several pages, or a .npy array")
    if not picture.uniform():
        raise FilterError("a 3-D kernel needs pages of one size and kind; these differ")
    planes = np.stack([page.planes() for page in picture.pages], axis=1)
    channels = len(picture.pages[0].samples)
    return planes[:channels], planes[channels] if len(planes) > channels else None


def _convolved(convolver: Convolver, array: NDArray[Any], how: Filter) -> Values:
    """Floats of shape (..., *O): every plane, or volume, of `array` with the kernel."""
    shape = array.shape[-len(how.kernel.shape) :]
    if len(shape) < len(how.kernel.shape):
        raise FilterError(f"an array of shape {array.shape} has too few axes for a kernel of shape {how.kernel.shape}")
    if not array.size:
        raise FilterError(f"an array of shape {array.shape} holds nothing to filter")
    weight = _weight(how.kernel, _working_type(array))
    itemsize = weight.itemsize * len(weight)
    planes = array.reshape(-1, 1, *shape)
    cut = bands(shape, how.kernel.shape, how.padding, how.padding_mode, itemsize)

    def filtered(group: NDArray[Any]) -> Values:
        return np.concatenate([_band(convolver, group, band, weight, how) for band in cut], axis=1)

    result = np.concatenate([filtered(planes[group]) for group in plane_groups(len(planes), prod(shape) * itemsize)])
    return result.reshape(*array.shape[: -len(shape)], *result.shape[1:])


def _band(convolver: Convolver, planes: NDArray[Any], band: Band, weight: Values, how: Filter) -> Values:
    """One call: the results of shape (planes, *O), of several filters the length of their vector."""
    samples = np.ascontiguousarray(planes[:, :, band.rows], weight.dtype)
    output: Values = convolver.run(samples, weight, **how.parameters(band.padding, weight.dtype)).output
    return output[:, 0] if len(weight) == 1 else np.sqrt(np.square(output).sum(axis=1))


def _working_type(array: NDArray[Any]) -> type[np.float32 | np.float64]:
    """The type in which samples of the array's type are exact."""
    kind, itemsize = array.dtype.kind, array.dtype.itemsize
    if kind not in "iuf" or itemsize > 8:
        raise FilterError(f"an array of {array.dtype} is not filtered; integers, float16, float32 and float64 are")
    if kind != "f" and itemsize == 8 and max(-int(array.min()), int(array.max())) > EXACT:
        raise FilterError(f"an array of {array.dtype} holds numbers beyond 2^53, which float64 does not")
    return np.float64 if itemsize == 8 or (itemsize == 4 and kind != "f") else np.float32


def _weight(kernel: Kernel, dtype: type[np.float32 | np.float64]) -> Values:
    """The taps as a weight of shape (filters, 1, *K)."""
    with np.errstate(over="ignore"):
        weight: Values = kernel.taps[:, np.newaxis].astype(dtype)
    if not np.isfinite(weight).all():
        raise FilterError(f"{kernel.name} holds {np.abs(kernel.taps).max():g}, which is beyond {np.dtype(dtype)}")
    return weight


def _mapped(results: Sequence[Values], dtype: np.dtype[Any], how: Filter) -> list[NDArray[Any]]:
    if dtype.kind == "f" and how.range is None:
        return [result.astype(dtype, copy=False) for result in results]
    return map_range(results, how.range or how.kernel.range, dtype)
