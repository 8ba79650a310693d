"""Requests that run together: their inputs one behind the other as one batch, whose output is theirs in turn."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from convolver.core.joint import Company, joined
from convolver.core.plan import Plan
from convolver.server.remembered import Remembered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from convolver.core.backends import Array, Backend, LayerWeights, Outcome
    from convolver.core.stack_plan import LayerPlan, StackPlan
    from convolver.server.engine import Held
    from convolver.server.jobs import Job
    from convolver.server.layer_weights import WeightsOf

    AnyPlan = Plan | StackPlan


class Ran(NamedTuple):
    """What ran, the output of each request, and seconds by phase."""

    plan: AnyPlan
    outputs: list[Array]
    seconds: dict[str, float]


class _Joined(NamedTuple):
    plan: AnyPlan

    @property
    def layers(self) -> int:
        """What it counts for among those that are kept."""
        return 1 if isinstance(self.plan, Plan) else len(self.plan.layers)


class JointRuns:
    """Of one engine, on any thread."""

    def __init__(self, backends: Mapping[str, Backend], weights_of: WeightsOf) -> None:
        self._backends, self._weights_of = backends, weights_of
        self._capabilities = [backend.capability for backend in backends.values()]
        self._remembered = Remembered[_Joined]()

    def run(self, job: Job, company: Company, held: Held, arrays: Mapping[str, Array], inputs: Sequence[Array]) -> Ran:
        """The outputs for the inputs of requests of one company (core/joint.py) and the same weights. `job` is one of
        them, with its company, layers and arrays.

        Raises:
            IntegerOverflow: an integer result of some of them does not fit.
            Smeared: what goes from layer to layer of some of them is not finite.
        """
        rank = 2 + (job.plan.geometry.ndim if isinstance(job.plan, Plan) else job.plan.ndim)
        batches = [x if x.ndim == rank else x[np.newaxis] for x in inputs]
        plan = self._plan(job.plan, company.key, sum(map(len, batches)))
        outcome = self._ran(plan, self._weights(job, held, arrays), np.concatenate(batches))
        ends = accumulate(map(len, batches))
        outputs = [outcome.output[end - len(x) : end] for x, end in zip(batches, ends, strict=True)]
        mine = [y if x.ndim == rank else y[0] for x, y in zip(inputs, outputs, strict=True)]
        return Ran(plan, mine, outcome.seconds)

    def _weights(self, job: Job, held: Held, arrays: Mapping[str, Array]) -> list[LayerWeights | None]:
        """In the form that the job alone would have, which is as fast for any number of items."""
        layers = (job.plan,) if isinstance(job.plan, Plan) else job.plan.layers
        weights = map(partial(self._weights_of, arrays), job.sources, held)
        return [each and _fixed(each, layer) for each, layer in zip(weights, layers, strict=True)]

    def _ran(self, plan: AnyPlan, weights: Sequence[LayerWeights | None], input: Array) -> Outcome:
        backend = self._backends[plan.backend]
        if not isinstance(plan, Plan):
            return backend.run_stack(plan, weights, input)
        assert weights[0] is not None, "a single layer is a convolution"  # noqa: S101
        return backend.run(plan, weights[0].prepared(plan), input)

    def _plan(self, plan: AnyPlan, key: bytes, items: int) -> AnyPlan:
        name = key + items.to_bytes(8, "little")
        found = self._remembered.get(name)
        if found is None:
            found = _Joined(joined(plan, items, self._capabilities))
            self._remembered.put(name, found)
        return found.plan


def _fixed(weights: LayerWeights, layer: LayerPlan) -> LayerWeights:
    """The weights in one form, whichever plan asks."""
    assert isinstance(layer, Plan), "a pooling has no weights"  # noqa: S101
    return weights._replace(prepared=lambda _: weights.prepared(layer))
