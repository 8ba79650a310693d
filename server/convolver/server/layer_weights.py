"""The weights of a request's layers: the store's, or those that it brought, in the form that a back end wants."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from convolver.core.backends import LayerWeights
from convolver.core.packing import packs
from convolver.core.tiling import tiling

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from convolver.core.backends import Array, Backend, Prepared
    from convolver.core.plan import Plan
    from convolver.server.jobs import Source
    from convolver.server.layers import HeldLayer, LayerStore


class WeightsOf:
    """What gives them; `backends` are by name."""

    def __init__(self, backends: Mapping[str, Backend], store: LayerStore) -> None:
        self._backends, self._store = backends, store

    def kept(self, arrays: Mapping[str, Array], source: Source | None, held: HeldLayer | None) -> HeldLayer | None:
        """The store's layer, which a layer that is to be kept becomes now."""
        if source is None or not source.kept:
            return held
        return self._store.put(source.kept, arrays[source.weight], arrays.get(source.bias))

    def __call__(
        self, arrays: Mapping[str, Array], source: Source | None, held: HeldLayer | None
    ) -> LayerWeights | None:
        """Those of one layer, None for pooling."""
        if source is None:
            return None
        if held:
            return LayerWeights(held.weight, held.bias, partial(self._held_form, held))
        weight, bias = arrays[source.weight], arrays.get(source.bias)
        return LayerWeights(weight, bias, lambda plan: self._backends[plan.backend].prepare(plan, weight, bias))

    def _held_form(self, held: HeldLayer, plan: Plan) -> Prepared:
        """The form that the plan's back end wants, made once."""
        backend = self._backends[plan.backend]

        def make() -> tuple[Prepared, int]:
            prepared = backend.prepare(plan, held.weight, held.bias, stays=True)
            return prepared, backend.prepared_bytes(plan, prepared)

        return held.prepared(_form_key(plan), make)


def _form_key(plan: Plan) -> Hashable:
    """What the form of a layer's weights depends on beside the layer."""
    shape: tuple[int, ...] = ()
    if plan.algorithm == "fft":
        shape = tiling(plan.geometry).lengths
    elif packs(plan):
        shape = plan.input.shape
    return plan.backend, plan.algorithm, plan.operation.accumulator.name, shape
