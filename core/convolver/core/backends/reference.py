"""The reference back end: NumPy alone. Exact for integers, IEEE for floats, and the truth that the others are tested
against.
"""

from __future__ import annotations

import platform
import time

import numpy as np

from convolver.core import dtypes
from convolver.core.backends import Array, Outcome, Prepared, fft, memory
from convolver.core.backends.activations import activate
from convolver.core.backends.arrays import canonical_input, canonical_weight, forward_weight, in_layout, padded
from convolver.core.backends.integers import exact_sum, fitted
from convolver.core.backends.reference_gradients import gradients
from convolver.core.backends.sums import summed
from convolver.core.choose import Capability
from convolver.core.gradients import Wanted
from convolver.core.plan import Plan
from convolver.core.tiling import tiling


class ReferenceBackend:
    """Every type, every semantic, on the CPU."""

    def __init__(self, threads: int) -> None:
        self.capability = Capability(
            name="reference",
            device=f"cpu {platform.processor() or platform.machine()}",
            threads=threads,
            memory_bytes=memory(),
            dtypes=frozenset(dtypes.TABLE),
            algorithms=("direct", "fft"),
        )

    def prepare(self, plan: Plan, weight: Array, bias: Array | None) -> Prepared:
        """The weight canonical, contiguous and in the accumulator's type, or its spectra; integers stay as they are,
        since their sums depend on the values.
        """
        canonical = canonical_weight(plan.operation, weight)
        if dtypes.TABLE[plan.operation.dtype].exact:
            return Prepared(np.ascontiguousarray(canonical), bias)
        wide = plan.operation.accumulator.numpy
        weight = np.ascontiguousarray(canonical, dtype=wide)
        if plan.algorithm == "fft":
            with np.errstate(all="ignore"):  # sums beyond the type's range are found once they are there
                weight = fft.spectra(tiling(plan.geometry), forward_weight(plan.geometry, weight))
        return Prepared(weight, None if bias is None else bias.astype(wide))

    def run(self, plan: Plan, prepared: Prepared, input: Array) -> Outcome:
        """The convolution. Raises IntegerOverflow where an integer result does not fit."""
        start = time.perf_counter()
        output = _computed(plan, prepared, canonical_input(plan.operation, input))
        return Outcome({"output": output}, {"copy_in": 0.0, "compute": time.perf_counter() - start, "copy_out": 0.0})

    def gradients(
        self, plan: Plan, wanted: Wanted, weight: Array | None, input: Array | None, grad_output: Array
    ) -> Outcome:
        """The gradients wanted."""
        start = time.perf_counter()
        grads = gradients(plan.geometry, wanted, input, weight, grad_output)
        return Outcome(grads, {"copy_in": 0.0, "compute": time.perf_counter() - start, "copy_out": 0.0})


def _computed(plan: Plan, prepared: Prepared, x: Array) -> Array:
    if not plan.geometry.output_batch:  # its padding would take no memory either, but NumPy has bounds for shapes
        return np.empty(plan.output_shape, dtypes.TABLE[plan.operation.output_dtype].numpy)
    exact = dtypes.TABLE[plan.operation.dtype].exact
    return _integers(plan, prepared, x) if exact else _floats(plan, prepared, x)


def _floats(plan: Plan, prepared: Prepared, x: Array) -> Array:
    op = plan.operation
    with np.errstate(all="ignore"):  # NaN and infinity travel as IEEE has them
        sums = _summed(plan, prepared, x)
        if prepared.bias is not None:
            sums += prepared.bias.reshape(-1, *(1,) * plan.geometry.ndim)
        if op.activation != "none":
            activate(op.activation, sums)
        return in_layout(op, sums).astype(dtypes.TABLE[op.output_dtype].numpy, "C", copy=False)


def _summed(plan: Plan, prepared: Prepared, x: Array) -> Array:
    wide = plan.operation.accumulator.numpy
    if plan.algorithm == "direct":
        return summed(plan.geometry, padded(plan.geometry, x, wide), prepared.weight)
    tiles = tiling(plan.geometry)
    return fft.convolved(tiles, padded(tiles.geometry, x, wide), prepared.weight)


def _integers(plan: Plan, prepared: Prepared, x: Array) -> Array:
    op = plan.operation
    spread = padded(plan.geometry, x, dtypes.TABLE[op.dtype].numpy)
    sums = exact_sum(plan.geometry, spread, prepared.weight, prepared.bias, summed)
    if op.activation == "relu":
        np.maximum(sums, 0, out=sums)
    return fitted(in_layout(op, sums), dtypes.TABLE[op.output_dtype], op.overflow)
