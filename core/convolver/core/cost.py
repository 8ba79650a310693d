"""The cost model: seconds, work and workspace of a convolution on a back end, from integers.

The figures were fitted to benchmarks/results/choice.md (python -m benchmarks.choice), whose tables show each estimate
beside its measurement. Only their ratios decide; docs/decisions/0008-cost-model.md says what they stand for.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from convolver.core import dtypes, gradients, methods, onednn, torch_memory
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.plan import ChosenAlgorithm, Plan
from convolver.core.pooling import Pooling
from convolver.core.tiling import Tiling, tiling

OVERHEAD = {"reference": 30e-6, "torch:cpu": 60e-6, "torch:cuda": 150e-6}
"""Seconds of a call that computes nothing."""

MAC_SECONDS, FEW_MAC_SECONDS = 3.6e-11, 1.04e-10
"""The reference's for each product on one core: the first, and the second divided by the kernels that share columns."""

COPIED_SECONDS, STRIDED_SECONDS = 1.5e-10, 5e-10
"""For each element of columns (im2col), in one piece or with a stride; on one core, as all that follows."""

ADDED_SECONDS, SCATTERED_SECONDS = 3.5e-10, 1.5e-9
"""For each element of a product that is written or added: where it stands, or where a transposed convolution lands."""

ORDERED_SECONDS = 2.5e-10
"""For each product that is added by itself."""

PADDED_SECONDS, CONVERTED_SECONDS, STREAMED_SECONDS = 1e-9, 3e-9, 6e-10
"""For each element that is copied to be padded; that comes from or becomes a narrower type; that a matrix product of a
whole tensor reads or writes.
"""

WIDTH = {"float32": 1.0, "float64": 2.0, "complex64": 7.0, "complex128": 11.0}
"""How many times float32's an element costs the reference."""

TORCH_MACS_PER_SECOND = 4e10
"""torch's products a second and core, float32 (oneDNN), counting channels of the output in whole blocks."""

TORCH_SLOW_MACS_PER_SECOND = 1.5e9
"""The same where oneDNN's depthwise kernels give up: padding above 6."""

TORCH_COLUMNS_MACS_PER_SECOND = {"float32": 2e10, "float64": 7e9}
"""Where torch moves columns itself (im2col) and MKL multiplies."""

NEAR_SECONDS, FAR_SECONDS = 7e-11, 5e-10
"""For each byte that oneDNN lays out anew: in arrays that the allocator keeps, and in those that it takes from the
system each time (page faults).
"""

NEAR_COPIED, FAR_COPIED = 1.5e-9, 4e-9
"""For each element of those columns, likewise."""

KEPT_BYTES = 32 << 20
"""glibc's largest threshold of mmap."""

FFT_SECONDS = {
    "reference": (3.3e-9, 5.5e-9, 1.5e-9, 0.25e-9, 60e-6),
    "torch:cpu": (3.7e-9, 2.5e-9, 2.0e-9, 0.2e-9, 160e-6),
    "torch:cuda": (2e-11, 2e-11, 1e-11, 1e-11, 60e-6),
}
"""For each transformed element of few planes and of many, each product of complex numbers (by itself, or in a matrix
product), and each tile. Many planes leave NumPy's cache and occupy torch's threads.
"""

MANY_PLANES = 4

TORCH_ROW_SECONDS = 6e-9
"""torch's for each transformed element of few rows in one dimension, which run on one thread."""

CUDA_MACS_PER_SECOND = 1e13
CUDA_BYTES_PER_SECOND = 1e10
"""Through pageable host memory."""

ACTIVATION_SECONDS = {"none": 0.0, "relu": 1e-9, "relu6": 1e-9, "leaky_relu": 2e-9, "gelu": 45e-9, "hardswish": 4e-9}
"""The reference's for each element; others take OTHER_ACTIVATION_SECONDS, and torch's TORCH_ACTIVATION_SECONDS."""

OTHER_ACTIVATION_SECONDS = 12e-9
TORCH_ACTIVATION_SECONDS = 2e-9


POOLED_SECONDS = {"reference": 1.5e-9, "torch:cpu": 1e-9, "torch:cuda": 2e-11}
"""For each element that a window of a pooling reads."""


ALONE_SECONDS = {"reference": 1.5e-3, "torch:cpu": 8e-4}
"""Up to so many of one core's seconds a second thread costs more than it computes: it sleeps between calls
(docs/decisions/0007-threads-must-not-spin.md), and waking it takes some 200 us.
"""


class Estimate(NamedTuple):
    """Seconds, multiply-accumulates, and bytes beside input, weight and output."""

    seconds: float
    work: int
    workspace_bytes: int


def estimate(
    geometry: Geometry,
    backend: str,
    threads: int,
    algorithm: ChosenAlgorithm = "direct",
    wanted: Wanted | None = None,
) -> Estimate:
    """The cost of a convolution, or of its gradients, on the back end of that name."""
    if wanted:
        return _of_gradients(geometry, backend, threads, wanted)
    kind = _kind(backend)
    beside = overhead(backend) + _activation_seconds(geometry, kind)
    if algorithm == "fft":
        tiles = tiling(geometry)
        return Estimate(beside + _fft_seconds(tiles, kind), tiles.work, tiles.workspace_bytes)
    if kind == "reference":
        seconds = _reference_seconds(geometry, threads)
        return Estimate(beside + seconds, geometry.macs, methods.workspace_bytes(geometry, threads))
    seconds = _cuda_seconds(geometry) if kind == "torch:cuda" else _torch_seconds(geometry, threads)
    on_cpu = threads if kind == "torch:cpu" else 1
    return Estimate(beside + seconds, geometry.macs, torch_memory.workspace_bytes(geometry, on_cpu))


def seconds_of(plan: Plan) -> float:
    """Those that a plan's products take, beside the overhead of a call."""
    found = estimate(plan.geometry, plan.backend, plan.threads, plan.algorithm, plan.wanted)
    return found.seconds - overhead(plan.backend)


def overhead(backend: str) -> float:
    """Seconds of a call of that back end that computes nothing."""
    return OVERHEAD[_kind(backend)]


def _kind(backend: str) -> str:
    """Of which the figures above are: devices of CUDA count as one."""
    return "torch:cuda" if backend.startswith("torch:cuda") else backend


def threads_that_pay(
    geometry: Geometry, backend: str, threads: int, algorithm: ChosenAlgorithm, wanted: Wanted | None = None
) -> int:
    """How many of the back end's threads a convolution, or its gradients, should have."""
    if backend == "reference" and (algorithm == "fft" or wanted):
        return 1  # it shares the sums of an output alone
    if backend not in ALONE_SECONDS or algorithm == "fft":
        return threads
    alone = estimate(geometry, backend, 1, algorithm, wanted).seconds - OVERHEAD[backend]
    return 1 if alone < ALONE_SECONDS[backend] else threads


def pooling_threads_that_pay(pooling: Pooling, backend: str, threads: int) -> int:
    """The same for a pooling."""
    few = backend == "torch:cpu" and pooling.work * POOLED_SECONDS[backend] < ALONE_SECONDS[backend]
    return 1 if few or backend == "reference" else threads


def pooling_seconds(pooling: Pooling, backend: str) -> float:
    """Those of a pooling on the back end of that name."""
    return overhead(backend) + pooling.work * POOLED_SECONDS[_kind(backend)]


def _of_gradients(geometry: Geometry, backend: str, threads: int, wanted: Wanted) -> Estimate:
    """Each of the two gradients that are sums of products takes about what the output takes; that of the bias reads
    grad_output.
    """
    forward, times = estimate(geometry, backend, threads), wanted.input + wanted.weight
    if backend == "reference":
        held = gradients.workspace_bytes(geometry, wanted)
    else:
        held = gradients.torch_workspace_bytes(geometry, wanted, threads if backend == "torch:cpu" else 1)
    seconds = forward.seconds * times + prod(geometry.canonical_output) * PADDED_SECONDS
    return Estimate(seconds, gradients.macs(geometry, wanted), held)


def _activation_seconds(geometry: Geometry, kind: str) -> float:
    name, outputs = geometry.operation.activation, prod(geometry.canonical_output)
    if name == "none" or kind == "torch:cuda":
        return 0.0
    of_reference = ACTIVATION_SECONDS.get(name, OTHER_ACTIVATION_SECONDS)
    return outputs * (of_reference if kind == "reference" else TORCH_ACTIVATION_SECONDS)


def _fft_seconds(tiles: Tiling, kind: str) -> float:
    few, many, product, in_matrix, launch = FFT_SECONDS[kind]
    element = few if tiles.rows < MANY_PLANES and tiles.geometry.ndim < 3 else many
    if kind == "torch:cpu" and tiles.geometry.ndim == 1 and tiles.rows < MANY_PLANES:
        element = TORCH_ROW_SECONDS
    if tiles.by_matrices:
        element, product = 2 * element, 2 * in_matrix  # spectra are turned so that frequencies come first
    each = tiles.transformed * element + tiles.multiplied * product
    return _width(tiles.geometry) * each + tiles.launches * launch


def _width(geometry: Geometry) -> float:
    """How many times float32's an element costs, by its bytes and, for complex numbers, real products."""
    wide = geometry.operation.accumulator
    return {"float32": 1.0, "float64": 1.5, "complex64": 2.0, "complex128": 3.0}[wide.name]


def _reference_seconds(geometry: Geometry, threads: int) -> float:
    op, wide = geometry.operation, geometry.operation.accumulator
    if dtypes.TABLE[op.dtype].exact:
        wide = dtypes.TABLE["float64"]
    product = MAC_SECONDS + FEW_MAC_SECONDS / methods.kernels_per_group(geometry)
    shared = geometry.macs * product + _moving_seconds(geometry)
    seconds = WIDTH[wide.name] * (shared / threads + _padding_seconds(geometry))
    if op.dtype != wide.name:
        seconds += CONVERTED_SECONDS * (prod(op.input_shape) + prod(geometry.canonical_output))
    return seconds


def _padding_seconds(geometry: Geometry) -> float:
    """What the reference copies to pad its input, on one thread."""
    if not methods.needs_padded_copy(geometry):
        return 0.0
    return prod(geometry.operation.canonical_input[:2]) * prod(geometry.padded_size) * PADDED_SECONDS


def _moving_seconds(geometry: Geometry) -> float:
    """What the reference moves beside its products, on all its threads."""
    op, kind = geometry.operation, methods.method(geometry)
    if kind == "scatter":
        landed = geometry.batch * prod(geometry.input_size) * geometry.out_channels * prod(geometry.kernel)
        return landed * SCATTERED_SECONDS
    if kind in ("pointwise", "linear"):
        return (prod(op.input_shape) + prod(geometry.canonical_output)) * STREAMED_SECONDS
    if kind == "ordered":
        return geometry.macs * ORDERED_SECONDS
    outputs, offsets = prod(geometry.canonical_output), methods.offsets(geometry)
    copied = outputs // methods.kernels_per_group(geometry) * geometry.sum_length // offsets
    each = COPIED_SECONDS if op.stride[-1] == 1 else STRIDED_SECONDS
    return copied * each + outputs * offsets * ADDED_SECONDS


def _cuda_seconds(geometry: Geometry) -> float:
    moved = geometry.input_bytes + geometry.output_bytes
    return geometry.macs / CUDA_MACS_PER_SECOND + moved / CUDA_BYTES_PER_SECOND


def _torch_seconds(geometry: Geometry, threads: int) -> float:
    """On the CPU; complex numbers are three real convolutions."""
    wide, op = geometry.operation.accumulator, geometry.operation
    times = 3 if wide.kind == "complex" else 1
    if methods.is_linear(geometry):
        return times * geometry.macs / (TORCH_MACS_PER_SECOND * threads)
    if wide.name in ("float64", "complex128") or _passes_onednn_by(geometry):
        return times * _columns_seconds(geometry, threads, "float32" if wide.bits == 24 else "float64")
    if geometry.channels_per_group == 1 and op.groups > 1 and max(*op.pad_begin, *op.pad_end) > 6:
        return times * geometry.macs / (TORCH_SLOW_MACS_PER_SECOND * threads)
    products = geometry.macs * onednn.blocked(geometry.out_channels) // geometry.out_channels
    return times * (products / (TORCH_MACS_PER_SECOND * threads) + _reordering_seconds(geometry))


def _passes_onednn_by(geometry: Geometry) -> bool:
    """ATen's use_mkldnn: one small item and a kernel up to 3. It matters in three dimensions alone."""
    small = prod(geometry.operation.canonical_input[:4]) <= 20480
    few = geometry.batch == 1 and geometry.operation.groups == 1
    return geometry.ndim == 3 and few and small and min(geometry.kernel[-2:]) <= 3


def _columns_seconds(geometry: Geometry, threads: int, dtype: str) -> float:
    places = geometry.batch * prod(geometry.input_size if geometry.operation.transposed else geometry.output_size)
    copied = places * geometry.in_channels * prod(geometry.kernel)
    far = copied * dtypes.named(dtype).itemsize > 4 * KEPT_BYTES
    products = geometry.macs / (TORCH_COLUMNS_MACS_PER_SECOND[dtype] * threads)
    return products + copied * (FAR_COPIED if far and dtype == "float64" else NEAR_COPIED)


def _reordering_seconds(geometry: Geometry) -> float:
    """For oneDNN's own layout and back: blocks of channels, but for an input of up to three channels."""
    op, seconds = geometry.operation, 0.0
    inputs = (geometry.batch, geometry.in_channels, *(geometry.input_size if op.transposed else geometry.padded_size))
    for shape in (inputs, geometry.canonical_output):
        places, channels = shape[0] * prod(shape[2:]), shape[1]
        if channels > 3 or shape is not inputs:
            size = 4 * places * onednn.blocked(channels)
            far = size > KEPT_BYTES and not op.transposed
            seconds += (size + 4 * places * channels) * (FAR_SECONDS if far else NEAR_SECONDS)
    return seconds
