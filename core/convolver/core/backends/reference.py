"""The reference back end: NumPy alone. Exact for integers, IEEE for floats, and the truth that the others are tested
against.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from convolver.core import dtypes
from convolver.core.backends import Array, LayerWeights, Outcome, Prepared, check_out, fft, memory, stacks
from convolver.core.backends.activation_gradients import activation_gradient
from convolver.core.backends.activations import activate
from convolver.core.backends.arrays import canonical_input, canonical_weight, forward_weight, in_layout, padded
from convolver.core.backends.integers import exact_sum, fitted
from convolver.core.backends.reference_gradients import gradients
from convolver.core.backends.reference_pooling import pool, pool_gradient
from convolver.core.backends.sums import summed
from convolver.core.choose import Capability
from convolver.core.gradients import Wanted
from convolver.core.operation import Operation
from convolver.core.plan import Plan
from convolver.core.pooling import Pooling
from convolver.core.stack_plan import StackPlan
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

    def prepare(
        self,
        plan: Plan,
        weight: Array,
        bias: Array | None,
        *,
        stays: bool = False,  # noqa: ARG002 - NumPy takes weights as they stand
    ) -> Prepared:
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
        return Prepared(weight, None if bias is None else bias.astype(wide, copy=False))

    def prepared_bytes(self, plan: Plan, prepared: Prepared) -> int:
        """Bytes that this form takes beside weight and bias themselves."""
        return stacks.prepared_bytes(plan, prepared)

    def run(self, plan: Plan, prepared: Prepared, input: Array, out: Array | None = None) -> Outcome:
        """The convolution. Raises IntegerOverflow where an integer result does not fit."""
        check_out(out, plan.output)
        return _timed(lambda: {"output": _output(plan, prepared, input, out)})

    def gradients(
        self, plan: Plan, wanted: Wanted, weight: Array | None, input: Array | None, grad_output: Array
    ) -> Outcome:
        """The gradients wanted."""
        return _timed(lambda: gradients(plan.geometry, wanted, input, weight, grad_output))

    def run_stack(
        self, plan: StackPlan, weights: Sequence[LayerWeights | None], input: Array, out: Array | None = None
    ) -> Outcome:
        """The stack's output. Raises IntegerOverflow naming the layer."""
        check_out(out, plan.outputs["output"])
        nothing = stacks.of_an_empty_batch(plan, out)
        return nothing or _timed(lambda: {"output": _placed(stacks.run(_STEPS, plan, weights, input)["output"], out)})

    def stack_gradients(
        self, plan: StackPlan, weights: Sequence[LayerWeights | None], input: Array, grad_output: Array
    ) -> Outcome:
        """The gradients that the plan's `outputs` lists."""
        nothing = stacks.of_an_empty_batch(plan)
        return nothing or _timed(lambda: stacks.gradients(_STEPS, plan, weights, input, grad_output))


def _timed(compute: Callable[[], dict[str, Array]]) -> Outcome:
    start = time.perf_counter()
    with np.errstate(all="ignore"):  # NaN and infinity travel as IEEE has them
        outputs = compute()
    return Outcome(outputs, {"copy_in": 0.0, "compute": time.perf_counter() - start, "copy_out": 0.0})


def _output(plan: Plan, prepared: Prepared, input: Array, out: Array | None) -> Array:
    if not plan.geometry.output_batch:  # its padding would take no memory either, but NumPy has bounds for shapes
        return np.empty(plan.output_shape, dtypes.TABLE[plan.operation.output_dtype].numpy) if out is None else out
    room = _room(plan, out)
    steps = _STEPS if room is None else _STEPS._replace(sums=partial(_sums, out=room))
    output: Array = stacks.convolved(steps, plan, prepared, input)
    return _placed(output, out) if out is None or room is None else out


def _room(plan: Plan, out: Array | None) -> Array | None:
    """Out as direct sums of its type can be written into it, canonical and contiguous; None where they cannot."""
    op = plan.operation
    if out is None or plan.algorithm != "direct" or op.accumulator.name != op.output_dtype:
        return None
    canonical = canonical_input(op, out)
    return canonical if canonical.flags.c_contiguous and not dtypes.TABLE[op.dtype].exact else None


def _placed(output: Array, out: Array | None) -> Array:
    """The output, in `out` where that is given."""
    if out is None:
        return output
    np.copyto(out, output)
    return out


def _sums(plan: Plan, prepared: Prepared, x: Array, out: Array | None = None) -> Array:
    op = plan.operation
    x = canonical_input(op, x)
    if dtypes.TABLE[op.dtype].exact:
        spread = padded(plan.geometry, x, dtypes.TABLE[op.dtype].numpy)
        return exact_sum(plan.geometry, spread, prepared.weight, prepared.bias, partial(summed, threads=plan.threads))
    sums = _summed(plan, prepared, x, out)
    if prepared.bias is not None:
        sums += prepared.bias.reshape(-1, *(1,) * plan.geometry.ndim)
    return sums


def _summed(plan: Plan, prepared: Prepared, x: Array, out: Array | None) -> Array:
    wide = plan.operation.accumulator.numpy
    if plan.algorithm == "direct":
        return summed(plan.geometry, padded(plan.geometry, x, wide), prepared.weight, plan.threads, out)
    tiles = tiling(plan.geometry)
    return fft.convolved(tiles, padded(tiles.geometry, x, wide), prepared.weight)


def _activated(op: Operation, sums: Array) -> Array:
    activate(op.activation, sums)
    return sums


def _rounded(op: Operation, sums: Array) -> Array:
    if dtypes.TABLE[op.dtype].exact:
        return fitted(in_layout(op, sums), dtypes.TABLE[op.output_dtype], op.overflow)
    return in_layout(op, sums).astype(dtypes.TABLE[op.output_dtype].numpy, "C", copy=False)


def _activation_gradient(op: Operation, sums: Array, grad: Array) -> Array:
    return activation_gradient(op.activation, in_layout(op, sums), grad.astype(sums.dtype, copy=False))


def _pool_gradient(pooling: Pooling, x: Array | None, grad: Array) -> Array:
    read = np.broadcast_to(np.zeros((), grad.dtype), pooling.input_shape) if x is None else x
    return pool_gradient(pooling, read, grad)


_STEPS = stacks.Steps(
    sums=_sums,
    saved=np.copy,
    activated=_activated,
    output=_rounded,
    gradients=gradients,
    activation_gradient=_activation_gradient,
    pool=pool,
    pool_gradient=_pool_gradient,
)
