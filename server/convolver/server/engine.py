"""What every transport reaches: a request's headers become a Plan within the limits, a Plan with its tensors becomes an
answer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from convolver.core import gradients, request_codec, stack_plan
from convolver.core.backends import LayerWeights, Outcome, Smeared, available
from convolver.core.choose import Capability, choose
from convolver.core.choose_stack import choose_stack
from convolver.core.codec import execution_from_proto
from convolver.core.errors import InvalidConvolution, LimitExceeded, UnknownLayer, Unsupported
from convolver.core.geometry import Geometry
from convolver.core.pieces import Piece, pieces
from convolver.core.plan import Limits, Plan
from convolver.core.stack_plan import StackPlan, step_of, tensor_bytes
from convolver.core.tensors import first_nonfinite
from convolver.server import metrics
from convolver.server.jobs import Job, Source, output_regions_of, read_convolution, sources_of, tensors_of
from convolver.server.joint_runs import JointRuns
from convolver.server.layer_weights import WeightsOf
from convolver.server.parts import PartsOf

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from convolver.core.backends import Array, Backend, Prepared
    from convolver.core.gradients import Wanted
    from convolver.core.operation import Execution, Tensor
    from convolver.core.stack import Step
    from convolver.server.layers import HeldLayer, LayerStore
    from convolver.server.settings import Settings
    from convolver.v1 import convolution_pb2 as pb

NOWHERE: Mapping[str, Array] = MappingProxyType({})

Held = tuple["HeldLayer | None", ...]
"""For each layer of a job that which the store has of it, so that it stays until the job is done."""


class Replanned(Exception):
    """A job that was planned as FFT, and whose operands do not allow that; `job` is the same by direct sums."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class Engine:
    """Plans and runs convolutions and stacks on the back ends of this machine, with the layers of its store."""

    def __init__(self, backends: Sequence[Backend], limits: Limits, store: LayerStore) -> None:
        self._backends = {backend.capability.name: backend for backend in backends}
        self.limits, self.store, self.parts = limits, store, PartsOf(self)
        self._weights = WeightsOf(self._backends, store)
        self.joint_runs = JointRuns(self._backends, self._weights)

    @classmethod
    def of(cls, settings: Settings, store: LayerStore) -> Engine:
        """The engine of these settings. Raises ImportError where torch is asked for and is not installed."""
        limits = Limits(settings.max_output_elements, int(settings.max_request_bytes), settings.max_work)
        try:
            return cls(available(settings.backend, settings.threads), limits, store)
        except ImportError as error:
            raise ImportError(f"back end {settings.backend}: {error}; pip install 'convolver[torch]'") from error

    @property
    def capabilities(self) -> list[Capability]:
        """What the back ends can do."""
        return [backend.capability for backend in self._backends.values()]

    def plan(self, raw: bytes) -> Plan | StackPlan:
        """What a serialised Convolution would run.

        Raises:
            InvalidConvolution: a field is wrong.
            UnknownLayer: a digest names no layer of the store.
            Unsupported: no back end that may be used can do it, or this version cannot.
            LimitExceeded: it can never fit this server.
        """
        return self.accept(raw).plan

    def accept(self, raw: bytes) -> Job:
        """A request that can run, decided from its header alone. Raises as `plan` does."""
        convolution = read_convolution(raw)
        sources = sources_of(convolution, raw)
        plan, tensors = self._plan(convolution), tensors_of(convolution, sources)
        for i, source in enumerate(sources):
            if source and source.kept:
                size = sum(tensor_bytes(tensors[name].tensor) for name in (source.weight, source.bias) if name)
                self.store.check(len(source.kept) + size, f"layers[{i}]" if len(sources) > 1 else "the layer")
        return Job(plan, tensors, sources, output_regions_of(convolution, [*plan.outputs], tensors))

    def hold(self, job: Job) -> Held:
        """The layers of the store that the job names; they are used thereby. Raises UnknownLayer."""
        return tuple(map(partial(self._found, count=len(job.sources)), range(len(job.sources)), job.sources))

    def _found(self, i: int, source: Source | None, *, count: int) -> HeldLayer | None:
        if source is None or not source.digest:
            return None
        try:
            return self.store.get(source.digest)
        except UnknownLayer as unknown:
            if count == 1:
                raise
            raise UnknownLayer(f"layers[{i}]: {unknown.message}", unknown.digest) from None

    def run(self, job: Job, held: Held, arrays: Mapping[str, Array], out: Mapping[str, Array] = NOWHERE) -> Outcome:
        """Computes, in the calling thread, with the arrays of the request's tensors; outputs that `out` has are written
        there.

        Raises:
            InvalidConvolution: "fft" was asked for and cannot be.
            IntegerOverflow: an integer result does not fit.
            Replanned: the job has to run otherwise.
            LimitExceeded: and that is more than this server takes.
        """
        layers = [*map(partial(self._weights.kept, arrays), job.sources, held)]
        if isinstance(job.plan, Plan):
            outcome = self._run_single(job, job.plan, layers[0], arrays, out.get("output"))
        else:
            weights = [*map(partial(self._weights, arrays), job.sources, layers)]
            outcome = self._run_stack(job, job.plan, weights, arrays)
        return _written(outcome, out)

    def pieces(self, job: Job) -> tuple[Piece, ...]:
        """The parts that the job's convolution can be run in; none where it runs as a whole."""
        return pieces(job.plan, self._piece_planned)

    def most_held_bytes(self, job: Job) -> int:
        """Bytes that the job holds: by its plan, or by that which its operands may ask for instead of an FFT."""
        plan = job.plan
        layers = plan.layers if isinstance(plan, StackPlan) else (plan,)
        if plan.execution.algorithm == "fft" or not any(isinstance(p, Plan) and p.algorithm == "fft" for p in layers):
            return plan.peak_bytes
        try:
            return max(plan.peak_bytes, self._directly(job).peak_bytes)
        except (LimitExceeded, Unsupported):  # it will not run
            return plan.peak_bytes

    def prepared(self, job: Job, held: Held, arrays: Mapping[str, Array]) -> Prepared:
        """The weights of a job that runs in pieces, for all of them; a layer that is to be kept is kept now."""
        weights = self._weights(arrays, job.sources[0], self._weights.kept(arrays, job.sources[0], held[0]))
        assert weights is not None, "a single layer is a convolution"  # noqa: S101
        assert isinstance(job.plan, Plan), "a stack has no pieces"  # noqa: S101
        return weights.prepared(job.plan)

    def run_piece(self, piece: Piece, prepared: Prepared, input: Array, out: Array) -> dict[str, float]:
        """Computes a part of the output, in the calling thread, from a part of the input; seconds by phase. Raises
        IntegerOverflow.
        """
        backend = self._backends[piece.plan.backend]
        return backend.run(piece.plan, prepared, input[piece.input], out[piece.output]).seconds

    def device(self, plan: Plan | StackPlan) -> str:
        """The name, for people, of what the plan runs on."""
        return self._backends[plan.backend].capability.device

    def _plan(self, convolution: pb.Convolution) -> Plan | StackPlan:
        steps = request_codec.steps_from_proto(convolution, lambda digest: self.store.get(digest).header)
        asked = request_codec.gradients_from_proto(convolution)
        return self._choose(steps, execution_from_proto(convolution.execution), asked)

    def _choose(
        self, steps: tuple[Step, ...], execution: Execution, asked: tuple[Wanted, Tensor] | None
    ) -> Plan | StackPlan:
        wanted = asked[0] if asked else None
        if len(steps) > 1 or not isinstance(steps[0], Geometry):
            if asked:
                stack_plan.check(steps, *asked)
            return choose_stack(steps, execution, self.capabilities, self.limits, wanted)
        if asked:
            gradients.check(steps[0], asked[1])
        return choose(steps[0], execution, self.capabilities, self.limits, wanted)

    def _piece_planned(self, geometry: Geometry, execution: Execution) -> Plan:
        return choose(geometry, execution, self.capabilities, Limits())

    def _run_single(
        self, job: Job, plan: Plan, held: HeldLayer | None, arrays: Mapping[str, Array], out: Array | None
    ) -> Outcome:
        backend = self._backends[plan.backend]
        if plan.wanted:
            weight = held.weight if held else arrays.get("weight")
            return backend.gradients(plan, plan.wanted, weight, arrays.get("input"), arrays["grad_output"])
        weights = self._weights(arrays, job.sources[0], held)
        assert weights is not None, "a single layer is a convolution"  # noqa: S101
        if plan.algorithm == "fft":
            self._replan_unless_finite(job, {"input": arrays["input"], "weight": weights.weight})
        try:
            return backend.run(plan, weights.prepared(plan), arrays["input"], out)
        except Smeared:
            self._replan(job, f"the sums pass the range of {plan.operation.accumulator.name} within an FFT", "input")

    def _run_stack(
        self, job: Job, plan: StackPlan, weights: Sequence[LayerWeights | None], arrays: Mapping[str, Array]
    ) -> Outcome:
        backend = self._backends[plan.backend]
        if plan.wanted:
            return backend.stack_gradients(plan, weights, arrays["input"], arrays["grad_output"])
        for i, layer in plan.convolutions:
            own = weights[i]
            if layer.algorithm == "fft" and own:
                operands = {f"layers[{i}].weight": own.weight} | ({} if i else {"input": arrays["input"]})
                self._replan_unless_finite(job, operands)
        try:
            return backend.run_stack(plan, weights, arrays["input"])
        except Smeared:
            self._replan(job, "what goes from layer to layer is not finite, which an FFT would spread", "input")

    def _replan_unless_finite(self, job: Job, operands: Mapping[str, Array]) -> None:
        for field, array in operands.items():
            index = first_nonfinite(array)
            if index is not None:
                where = f"{field}[{', '.join(map(str, index))}] is {array[index]}"
                self._replan(job, f"{where}, which an FFT would spread over the whole output", field)

    def _replan(self, job: Job, why: str, field: str) -> NoReturn:
        """Raises Replanned with the job as direct sums, or what refuses it."""
        plan = job.plan
        if plan.execution.algorithm == "fft":
            raise InvalidConvolution(why, field)
        try:
            chosen = self._directly(job)
        except LimitExceeded as refusal:
            text = f"{why} (work {plan.work}), and by direct sums {refusal}"
            raise LimitExceeded(text, refusal.subject, refusal.limit, refusal.value, refusal.setting) from None
        metrics.REPLANNED.inc()
        raise Replanned(replace(job, plan=replace(chosen, execution=plan.execution))) from None

    def _directly(self, job: Job) -> Plan | StackPlan:
        """The plan by direct sums. Raises LimitExceeded."""
        plan = job.plan
        steps = (plan.geometry,) if isinstance(plan, Plan) else tuple(map(step_of, plan.layers))
        return self._choose(steps, replace(plan.execution, algorithm="direct"), None)


def _written(outcome: Outcome, out: Mapping[str, Array]) -> Outcome:
    """The outcome, with what the back end has made elsewhere copied to where it is wanted."""
    for name, array in out.items():
        made = outcome.outputs[name]
        if made is not array:
            np.copyto(array, made)
    return Outcome({**outcome.outputs, **out}, outcome.seconds) if out else outcome
