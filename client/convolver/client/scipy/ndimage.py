"""scipy.ndimage.convolve and correlate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from convolver.client._interchange import to_array
from convolver.client.scipy import _arguments as arguments
from convolver.client.scipy._filtered import Border, Stencil, filtered

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.client import Client
    from convolver.client._interchange import AnyArray
    from convolver.core.tensors import Array

__all__ = ["convolve", "correlate"]

Mode = Literal["reflect", "grid-mirror", "constant", "grid-constant", "nearest", "mirror", "wrap", "grid-wrap"]
Output = Any
"""An array to write to, a type, or its name."""


def convolve(
    input: AnyArray,
    weights: AnyArray,
    output: Output | None = None,
    mode: Mode = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: int | Sequence[int] | None = None,
    client: Client | None = None,
) -> Array:
    """scipy.ndimage.convolve: an array of the input's shape, each element of which is the sum over its neighbourhood
    times the weights, turned.

    Args:
        input: Booleans, integers, float32, float64 or complex, of any rank.
        weights: The kernel, with one dimension for each axis that is filtered.
        output: The array to write to and return, or the type of a new one; by default the input's.
        mode: What stands beyond the edges.
        cval: What stands there in mode `constant`.
        origin: Moves the kernel, by as many elements, to the right.
        axes: The axes to filter along. None: all.
        client: Who computes. None: this process's own client.

    Sums are doubles; integers cut the fraction off and wrap around, as in C. Raises RuntimeError and ValueError as
    SciPy does, Unsupported for a kernel longer than 1 in more than three dimensions, else as `Client.convolve`.
    """
    return _filtered(input, weights, output, mode, cval, origin, axes, client, flip=True)


def correlate(
    input: AnyArray,
    weights: AnyArray,
    output: Output | None = None,
    mode: Mode = "reflect",
    cval: complex = 0.0,
    origin: int | Sequence[int] = 0,
    *,
    axes: int | Sequence[int] | None = None,
    client: Client | None = None,
) -> Array:
    """scipy.ndimage.correlate: as `convolve`, with the weights as they are; complex ones are conjugated."""
    return _filtered(input, weights, output, mode, cval, origin, axes, client, flip=False)


def _filtered(
    input: AnyArray,
    weights: AnyArray,
    output: Output | None,
    mode: Mode,
    cval: complex,
    origin: int | Sequence[int],
    axes: int | Sequence[int] | None,
    client: Client | None,
    *,
    flip: bool,
) -> Array:
    image, kernel = to_array(input), to_array(weights)
    complex_output = "c" in (image.dtype.kind, kernel.dtype.kind)
    chosen = arguments.checked_axes(axes, image.ndim)
    kernel = arguments.spread_kernel(_as_doubles(kernel), chosen, image.ndim)
    padding = arguments.borders(kernel.shape, origin, chosen, flip=flip)
    value = arguments.checked_value(cval, image, complex_output=complex_output)
    border = Border.of(padding, arguments.padding_mode(mode), value)
    target = arguments.output_array(output, image, complex_output=complex_output)
    if image.size:
        arguments.check_types(image, target, complex_output=complex_output)
        turned = kernel.conj() if not flip and kernel.dtype.kind == "c" else kernel
        target[...] = filtered(image, Stencil(turned, border, flip, client), target.dtype)
    return target


def _as_doubles(kernel: Array) -> Array:
    return kernel.astype(np.complex128 if kernel.dtype.kind == "c" else np.float64, copy=False)
