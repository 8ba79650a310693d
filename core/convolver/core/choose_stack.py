"""Where a stack runs: on the one back end that takes it all and is the cheapest by the cost model, each layer by the
algorithm that is the cheapest there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from convolver.core import cost, pooling_memory
from convolver.core.choose import Capability, candidates_of, first_within, named, nobody
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution
from convolver.core.plan import Limits
from convolver.core.pooling import Pooling
from convolver.core.stack import Step
from convolver.core.stack_memory import workspace_bytes
from convolver.core.stack_plan import LayerPlan, PoolingPlan, StackPlan


class _Candidate(NamedTuple):
    seconds: float
    plan: StackPlan


def choose_stack(
    steps: Sequence[Step],
    execution: Execution,
    capabilities: Sequence[Capability],
    limits: Limits | None = None,
    wanted: Wanted | None = None,
) -> StackPlan:
    """The plan of the cheapest back end that takes every layer and keeps the limits, for the output or the gradients
    wanted (which are computed by direct sums alone).

    Raises Unsupported, saying why each back end that may be used cannot; LimitExceeded where none keeps the limits.
    """
    usable, refusals = named(execution, capabilities), list[str]()
    if wanted and execution.algorithm == "fft":
        raise nobody(["gradients are computed by direct sums alone"])
    candidates = list(_candidates(steps, execution, usable, refusals, wanted))
    if not candidates:
        raise nobody(refusals)
    return first_within(limits, [each.plan for each in sorted(candidates, key=lambda c: c.seconds)])


def _candidates(
    steps: Sequence[Step],
    execution: Execution,
    capabilities: Sequence[Capability],
    refusals: list[str],
    wanted: Wanted | None,
) -> Iterator[_Candidate]:
    """On each back end the cheapest algorithms, and direct sums alone too: they may take less memory."""
    direct = replace(execution, algorithm="direct")
    ways = [direct] if wanted else [execution, direct] if execution.algorithm == "auto" else [execution]
    for capability in capabilities:
        for how in ways:
            found = _on(steps, how, capability, refusals)
            if found:
                seconds, layers = found
                yield _Candidate(seconds, _planned(layers, execution, wanted))


def _on(
    steps: Sequence[Step], execution: Execution, capability: Capability, refusals: list[str]
) -> tuple[float, tuple[LayerPlan, ...]] | None:
    """The layers on one back end as they run forward, and their seconds (gradients take a multiple of them, whichever
    back end it is); None where it cannot do one of them.
    """
    total, layers = 0.0, list[LayerPlan]()
    for i, step in enumerate(steps):
        why: list[str] = []
        found = (
            _convolution(step, execution, capability, why)
            if isinstance(step, Geometry)
            else _pooling(step, capability, why)
        )
        if found is None:
            refusals += [f"layers[{i}]: {each}" for each in why]
            return None
        seconds, plan = found
        total += seconds
        layers.append(plan)
    return total, tuple(layers)


def _convolution(
    step: Geometry, execution: Execution, capability: Capability, why: list[str]
) -> tuple[float, LayerPlan] | None:
    return min(candidates_of(step, execution, [capability], why), key=lambda c: c.seconds, default=None)


def _pooling(step: Pooling, capability: Capability, why: list[str]) -> tuple[float, LayerPlan] | None:
    if step.dtype not in capability.dtypes:
        why.append(f"{capability.name} does not compute {step.dtype}")
        return None
    held = pooling_memory.workspace_bytes(step, capability.name)
    threads = cost.pooling_threads_that_pay(step, capability.name, capability.threads)
    return cost.pooling_seconds(step, capability.name), PoolingPlan(step, capability.name, threads, held)


def _planned(layers: tuple[LayerPlan, ...], execution: Execution, wanted: Wanted | None) -> StackPlan:
    bare = StackPlan(layers, execution, sum(layer.work for layer in layers), 0, wanted)
    backward = bare.macs - sum(layer.macs for layer in layers) if wanted else 0
    return replace(bare, work=bare.work + backward, workspace_bytes=workspace_bytes(bare))
