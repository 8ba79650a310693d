"""The reference's sums by NumPy's Fourier transforms (pocketfft)."""

from __future__ import annotations

import numpy as np

from convolver.core.backends import Array, overlap
from convolver.core.tiling import Tiling


def spectra(tiling: Tiling, w: Array) -> Array:
    """Of the weight (O, C/groups, *K) of the tiling's convolution; see overlap.spectra."""
    made: Array = overlap.spectra(tiling, _library(tiling), w)
    return made


def convolved(tiling: Tiling, x: Array, weights: Array) -> Array:
    """The convolution (N, O, *size) of the padded input x (N, C, *P)."""
    made: Array = overlap.convolved(tiling, _library(tiling), x, weights)
    return made


def _library(tiling: Tiling) -> overlap.Library:
    axes = tuple(range(-tiling.geometry.ndim, 0))
    forward, inverse = (np.fft.fftn, np.fft.ifftn) if tiling.is_complex else (np.fft.rfftn, np.fft.irfftn)
    return overlap.Library(
        lambda x, lengths: forward(x, lengths, axes),
        lambda x, lengths: inverse(x, lengths, axes),
        np.ascontiguousarray,
        lambda shape, like: np.zeros(shape, like.dtype),
        lambda shape, like: np.empty(shape, like.dtype),
        np.isfinite,
    )
