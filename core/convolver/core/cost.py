"""The cost model: seconds, work and workspace of a convolution on a back end, from integers.

The figures were taken on two cores of a shared x86-64 server, and are rough: only their ratios decide.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from convolver.core import dtypes, methods
from convolver.core.geometry import Geometry, dilated

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

CUDA_MACS_PER_SECOND = 1e13
CUDA_BYTES_PER_SECOND = 1e10
"""Through pageable host memory."""

ONEDNN_BLOCK = 16
"""oneDNN lays channels out in blocks of 16, which is where torch's memory for few channels goes."""


class Estimate(NamedTuple):
    """Seconds, multiply-accumulates, and bytes beside input, weight and output."""

    seconds: float
    work: int
    workspace_bytes: int


def estimate(geometry: Geometry, backend: str, threads: int) -> Estimate:
    """The cost of a direct convolution on the back end of that name."""
    if backend == "reference":
        return Estimate(_reference_seconds(geometry, threads), geometry.macs, methods.workspace_bytes(geometry))
    if backend.startswith("torch:cuda"):
        moved = geometry.input_bytes + geometry.output_bytes
        seconds = OVERHEAD["torch:cuda"] + geometry.macs / CUDA_MACS_PER_SECOND + moved / CUDA_BYTES_PER_SECOND
        return Estimate(seconds, geometry.macs, _torch_workspace(geometry))
    return Estimate(_torch_seconds(geometry, threads), geometry.macs, _torch_workspace(geometry))


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
    few = min(geometry.channels_per_group, geometry.out_channels, ONEDNN_BLOCK // 2)
    if few < ONEDNN_BLOCK // 2:
        places = prod(geometry.canonical_output) / min(geometry.out_channels, ONEDNN_BLOCK // 2)
        seconds += places * (TORCH_SECONDS_PER_PLACE if max(geometry.kernel) <= 5 else TORCH_SECONDS_PER_PLACE_LARGE)
    return seconds


def _torch_workspace(geometry: Geometry) -> int:
    """Blocked copies of input and output; for float64 and complex a whole im2col; the copies that the back end makes
    itself: the dilated input uncropped and the padded one, or the whole of a transposed result.
    """
    op = geometry.operation
    wide = dtypes.accumulator(dtypes.TABLE[op.dtype], dtypes.TABLE[op.output_dtype])
    planes = geometry.batch * geometry.in_channels
    spans = prod(map(dilated, geometry.input_size, op.input_dilation))
    padded = planes * (prod(geometry.input_size) if op.transposed else spans + prod(geometry.padded_size))
    outputs = prod(geometry.canonical_output) + (methods.scatter_elements(geometry) if op.transposed else 0)
    if wide.name != "float32":
        places = geometry.batch * prod(geometry.input_size if op.transposed else geometry.output_size)
        return (
            (padded + outputs + places * geometry.in_channels * prod(geometry.kernel))
            * wide.itemsize
            * (2 if wide.kind == "complex" else 1)
        )
    blocked = _blocked(geometry.out_channels) / geometry.out_channels * outputs
    blocked_input = _blocked(geometry.in_channels) / geometry.in_channels * padded
    return round((2 * padded + blocked_input + blocked + outputs) * wide.itemsize)


def _blocked(channels: int) -> int:
    return -(-channels // ONEDNN_BLOCK) * ONEDNN_BLOCK
