"""The torch back end's sums by torch's Fourier transforms (MKL's on the CPU, cuFFT on CUDA)."""

from __future__ import annotations

import torch

from convolver.core.backends import overlap
from convolver.core.tiling import Tiling


def spectra(tiling: Tiling, w: torch.Tensor) -> torch.Tensor:
    """Of the weight (O, C/groups, *K) of the tiling's convolution; see overlap.spectra."""
    made: torch.Tensor = overlap.spectra(tiling, _library(tiling), w)
    return made


def convolved(tiling: Tiling, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The convolution (N, O, *size) of the padded input x (N, C, *P)."""
    made: torch.Tensor = overlap.convolved(tiling, _library(tiling), x, weights)
    return made


def _library(tiling: Tiling) -> overlap.Library:
    axes = tuple(range(-tiling.geometry.ndim, 0))
    fft = torch.fft
    forward, inverse = (fft.fftn, fft.ifftn) if tiling.is_complex else (fft.rfftn, fft.irfftn)
    return overlap.Library(
        lambda x, lengths: forward(x, lengths, axes),
        lambda x, lengths: inverse(x, lengths, axes),
        torch.Tensor.contiguous,
        lambda shape, like: like.new_zeros(shape),
        lambda shape, like: like.new_empty(shape),
        torch.isfinite,
    )
