"""Which requests may run as one, and as what: those that differ in their numbers of batch items alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from math import prod
from typing import Literal, NamedTuple

from convolver.core import rates
from convolver.core.choose import Capability, choose
from convolver.core.choose_stack import choose_stack
from convolver.core.dtypes import TABLE
from convolver.core.geometry import Geometry
from convolver.core.operation import Operation
from convolver.core.plan import Plan
from convolver.core.pooling import Pooling
from convolver.core.stack import Step
from convolver.core.stack_plan import StackPlan, step_of

Unbatched = Literal["alone", "deterministic", "large", "disabled", "ineligible"]
"""Why a request ran alone: nothing like it waited, its bits are promised, it fills its back end, the server batches
nothing, or its kind cannot be batched.
"""

LARGE_SECONDS = 2e-3
"""From which on a call's own cost no longer counts beside its sums, by the cost model."""

LARGEST_SECONDS, LARGEST_BYTES = 0.025, 16 << 20
"""Of what may run with others at all, for its weights are the most of what is read; and of its input and output."""


class Company(NamedTuple):
    """What a request may run with: requests of one `key` and the same weights. Without a key it runs alone, and
    `reason` says why; with one, that is "alone". `items` are its batch's.
    """

    key: bytes
    reason: Unbatched
    items: int


def company(plan: Plan | StackPlan) -> Company:
    """What a request of this plan may run with."""
    items = _items(plan)
    reason = _reason(plan, items)
    if reason != "alone":
        return Company(b"", reason, items)
    steps = tuple(_shaped(_with_items(step, 1)) for step in _steps(plan))
    how = replace(plan.execution, priority="interactive")
    text = repr((steps, how, plan.backend))
    return Company(blake2b(text.encode(), digest_size=16).digest(), reason, items)


def joined(plan: Plan | StackPlan, items: int, capabilities: Sequence[Capability]) -> Plan | StackPlan:
    """The plan of requests of the plan's kind with so many items together, on its back end."""
    execution = replace(plan.execution, backend=plan.backend, algorithm="direct")
    steps = [_with_items(step, items) for step in _steps(plan)]
    if isinstance(plan, Plan) and isinstance(steps[0], Geometry):
        return choose(steps[0], execution, capabilities)
    return choose_stack(steps, execution, capabilities)


def _steps(plan: Plan | StackPlan) -> Sequence[Step]:
    return (plan.geometry,) if isinstance(plan, Plan) else tuple(map(step_of, plan.layers))


def _shaped(step: Step) -> Operation | Pooling:
    """What has the input's shape."""
    return step.operation if isinstance(step, Geometry) else step


def _items(plan: Plan | StackPlan) -> int:
    shaped = _shaped(_steps(plan)[0])
    return shaped.input_shape[0] if shaped.batched else 1


def _reason(plan: Plan | StackPlan, items: int) -> Unbatched:
    layers = plan.layers if isinstance(plan, StackPlan) else (plan,)
    sums = [layer for layer in layers if isinstance(layer, Plan)]
    if plan.execution.deterministic:
        return "deterministic"
    if plan.wanted or not items or any(each.operation.batch_groups > 1 for each in sums):
        return "ineligible"
    return "large" if any(each.algorithm != "direct" for each in sums) or _is_large(plan, sums) else "alone"


def _is_large(plan: Plan | StackPlan, sums: Sequence[Plan]) -> bool:
    seconds, moved = rates.base_seconds(plan), _moved(plan)
    if seconds > LARGEST_SECONDS or moved > LARGEST_BYTES:
        return True
    weights = sum(prod(each.operation.weight_shape) * each.operation.accumulator.itemsize for each in sums)
    return seconds > LARGE_SECONDS and weights < moved


def _moved(plan: Plan | StackPlan) -> int:
    """Bytes of input and output."""
    return sum(prod(tensor.shape) * TABLE[tensor.dtype].itemsize for tensor in (plan.input, plan.output))


def _with_items(step: Step, items: int) -> Step:
    """The step with so many items."""
    if isinstance(step, Geometry):
        return Geometry.of(replace(step.operation, input_shape=_shape(step.operation, items)))
    return replace(step, input_shape=_shape(step, items))


def _shape(shaped: Operation | Pooling, items: int) -> tuple[int, ...]:
    return (items, *(shaped.input_shape[1:] if shaped.batched else shaped.input_shape))
