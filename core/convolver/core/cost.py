"""The cost model: seconds, work and workspace of a convolution on a back end, from integers.

The figures were taken on two cores of a shared x86-64 server, and are rough: only their ratios decide.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from convolver.core import methods, torch_memory
from convolver.core.geometry import Geometry
from convolver.core.plan import ChosenAlgorithm
from convolver.core.tiling import Tiling, tiling

OVERHEAD = {"reference": 30e-6, "torch:cpu": 60e-6, "torch:cuda": 150e-6}
"""Seconds of a call that computes nothing."""

MACS_PER_SECOND = {"pointwise": 2e10, "shift": 1.4e9, "gemm": 2e10, "scatter": 6e9}
"""The reference's products a second and core, float32."""

COPIED_PER_SECOND = 5e8
"""Elements a second that im2col and scatter move, on one core whatever the machine has."""

TORCH_MACS_PER_SECOND = 3e10
"""torch's products a second and core, float32 (oneDNN)."""

TORCH_SECONDS_PER_PLACE = 3e-8
TORCH_SECONDS_PER_PLACE_LARGE = 1.2e-7
"""torch's seconds for each output place of one to seven channels, beside its products: kernels up to 5, and larger ones
(measured on 1x1x1024x1024: 30 ms with 3x3 and 5x5, 160 ms with 7x7).
"""

FFT_SECONDS = {
    "reference": (3.5e-9, 1.5e-9, 60e-6),
    "torch:cpu": (1.5e-9, 0.8e-9, 60e-6),
    "torch:cuda": (2e-11, 1e-11, 60e-6),
}
"""For each transformed element, each product of complex numbers, and each tile that is started."""

CUDA_MACS_PER_SECOND = 1e13
CUDA_BYTES_PER_SECOND = 1e10
"""Through pageable host memory."""


class Estimate(NamedTuple):
    """Seconds, multiply-accumulates, and bytes beside input, weight and output."""

    seconds: float
    work: int
    workspace_bytes: int


def estimate(geometry: Geometry, backend: str, threads: int, algorithm: ChosenAlgorithm = "direct") -> Estimate:
    """The cost of a convolution on the back end of that name."""
    if algorithm == "fft":
        return _fft(tiling(geometry), backend)
    if backend == "reference":
        return Estimate(_reference_seconds(geometry, threads), geometry.macs, methods.workspace_bytes(geometry))
    if backend.startswith("torch:cuda"):
        moved = geometry.input_bytes + geometry.output_bytes
        seconds = OVERHEAD["torch:cuda"] + geometry.macs / CUDA_MACS_PER_SECOND + moved / CUDA_BYTES_PER_SECOND
        return Estimate(seconds, geometry.macs, torch_memory.workspace_bytes(geometry))
    return Estimate(_torch_seconds(geometry, threads), geometry.macs, torch_memory.workspace_bytes(geometry))


def _fft(tiles: Tiling, backend: str) -> Estimate:
    kind = "torch:cuda" if backend.startswith("torch:cuda") else backend
    element, product, launch = FFT_SECONDS[kind]
    seconds = tiles.transformed * element + tiles.multiplied * product + tiles.launches * launch
    return Estimate(OVERHEAD[kind] + seconds, tiles.work, tiles.workspace_bytes)


def _reference_seconds(geometry: Geometry, threads: int) -> float:
    kind = methods.method(geometry)
    cores = 1 if kind == "shift" else threads
    copied = (
        prod(geometry.canonical_output)
        * geometry.sum_length
        / max(1, geometry.out_channels // geometry.operation.groups)
    )
    seconds = OVERHEAD["reference"] + geometry.macs / (MACS_PER_SECOND[kind] * cores)
    return seconds + (copied / COPIED_PER_SECOND if kind in ("gemm", "scatter") else 0.0)


def _torch_seconds(geometry: Geometry, threads: int) -> float:
    seconds = OVERHEAD["torch:cpu"] + geometry.macs / (TORCH_MACS_PER_SECOND * threads)
    few = min(geometry.channels_per_group, geometry.out_channels, torch_memory.ONEDNN_BLOCK // 2)
    if few < torch_memory.ONEDNN_BLOCK // 2:
        places = prod(geometry.canonical_output) / min(geometry.out_channels, torch_memory.ONEDNN_BLOCK // 2)
        seconds += places * (TORCH_SECONDS_PER_PLACE if max(geometry.kernel) <= 5 else TORCH_SECONDS_PER_PLACE_LARGE)
    return seconds
