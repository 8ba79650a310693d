"""How fast this machine is: the ratio of measured seconds to those of the cost model, learnt while it works."""

from __future__ import annotations

from math import exp, isfinite, log
from threading import Lock
from typing import NamedTuple

from convolver.core import cost
from convolver.core.plan import ChosenAlgorithm, Plan
from convolver.core.stack_plan import LayerPlan, StackPlan, runs_forward

WEIGHT = 0.2
"""Of a new measurement: what is older than ten counts for a tenth."""

LARGEST_STEP = log(4.0)
"""As far as one measurement may lie from what was learnt; what lies further counts as that. With WEIGHT, one alone
changes an estimate by a third.
"""

LARGEST = log(1e4)
"""Of a ratio, either way."""


class Key(NamedTuple):
    """What has a ratio of its own. Each part is from a small set, so there are few: `kind` is "2d", "transposed 2d",
    "gradients 2d", "stack" or "stack gradients".
    """

    backend: str
    algorithm: ChosenAlgorithm
    dtype: str
    kind: str


def key(plan: Plan | StackPlan) -> Key:
    """The plan's."""
    if isinstance(plan, StackPlan):
        algorithm: ChosenAlgorithm = "fft" if any(layer.algorithm == "fft" for layer in plan.layers) else "direct"
        return Key(plan.backend, algorithm, plan.dtype, "stack gradients" if plan.wanted else "stack")
    op = plan.operation
    way = "gradients " if plan.wanted else "transposed " if op.transposed else ""
    return Key(plan.backend, plan.algorithm, op.dtype, f"{way}{op.ndim}d")


def base_seconds(plan: Plan | StackPlan) -> float:
    """The cost model's estimate, with the overhead of a call; positive. It follows from the plan alone, so who asks
    again may remember it.
    """
    seconds = _of_stack(plan) if isinstance(plan, StackPlan) else _of_layer(plan)
    return max(seconds, cost.overhead(plan.backend))


class Rates:
    """The ratios, each 1 until something is learnt: a mean of logarithms, whose weights fall exponentially with age.
    For any thread.
    """

    def __init__(self) -> None:
        self._logs: dict[Key, float] = {}
        self._lock = Lock()

    def seconds(self, plan: Plan | StackPlan) -> float:
        """What a run of the plan will take."""
        return base_seconds(plan) * self.factor(key(plan))

    def factor(self, key: Key) -> float:
        """What base seconds of that key are to be multiplied with; from 1e-4 to 1e4."""
        return exp(self._logs.get(key, 0.0))

    def learn(self, key: Key, base: float, measured: float) -> None:
        """A run of a plan with this key and these base seconds took so many. What is no positive number teaches
        nothing.
        """
        if not (isfinite(base) and isfinite(measured) and base > 0 and measured > 0):
            return
        found = log(measured) - log(base)
        with self._lock:
            known = self._logs.get(key, 0.0)
            step = max(-LARGEST_STEP, min(LARGEST_STEP, found - known))
            self._logs[key] = max(-LARGEST, min(LARGEST, known + WEIGHT * step))


def _of_stack(plan: StackPlan) -> float:
    """The layers that run forward, as choose_stack counts them, and what goes back through them."""
    total = sum(_of_layer(layer) for i, layer in enumerate(plan.layers) if runs_forward(plan, i))
    for i, layer in enumerate(plan.layers):
        wanted = plan.wanted_of(i)
        if wanted and isinstance(layer, Plan):
            total += cost.estimate(layer.geometry, layer.backend, layer.threads, wanted=wanted).seconds
        elif wanted:
            total += _of_layer(layer)
    return total


def _of_layer(layer: LayerPlan) -> float:
    if isinstance(layer, Plan):
        return cost.estimate(layer.geometry, layer.backend, layer.threads, layer.algorithm, layer.wanted).seconds
    return cost.pooling_seconds(layer.pooling, layer.backend)
