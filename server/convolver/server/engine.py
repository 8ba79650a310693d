"""What every transport reaches: a request's headers become a Plan within the limits, a Plan with its tensors becomes an
answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NoReturn

from convolver.core import codec
from convolver.core.backends import Smeared, available
from convolver.core.choose import Capability, choose
from convolver.core.errors import InvalidConvolution, LimitExceeded, Unsupported
from convolver.core.geometry import Geometry
from convolver.core.gradients import check
from convolver.core.plan import Limits, Plan
from convolver.core.tensors import Sourced, first_nonfinite, inline
from convolver.core.unknown import unknown_field
from convolver.server import metrics

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from convolver.core.backends import Array, Backend, Outcome
    from convolver.server.settings import Settings
    from convolver.v1 import convolution_pb2 as pb


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request: what will run, and where its tensors' bytes will be found."""

    plan: Plan
    tensors: dict[str, Sourced]


class Replanned(Exception):
    """A job that was planned as FFT, and whose operands do not allow that; `job` is the same by direct sums."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class Engine:
    """Plans and runs convolutions on the back ends of this machine."""

    def __init__(self, backends: Sequence[Backend], limits: Limits) -> None:
        self._backends = {backend.capability.name: backend for backend in backends}
        self.limits = limits

    @classmethod
    def of(cls, settings: Settings) -> Engine:
        """The engine of these settings. Raises ImportError where torch is asked for and is not installed."""
        limits = Limits(settings.max_output_elements, int(settings.max_request_bytes), settings.max_work)
        try:
            return cls(available(settings.backend, settings.threads), limits)
        except ImportError as error:
            raise ImportError(f"back end {settings.backend}: {error}; pip install 'convolver[torch]'") from error

    @property
    def capabilities(self) -> list[Capability]:
        """What the back ends can do."""
        return [backend.capability for backend in self._backends.values()]

    def plan(self, convolution: pb.Convolution) -> Plan:
        """What would run.

        Raises:
            InvalidConvolution: a field is wrong.
            Unsupported: no back end that may be used can do it, or this version cannot.
            LimitExceeded: it can never fit this server.
        """
        _refuse_what_is_to_come(convolution)
        geometry = Geometry.of(codec.operation_from_proto(convolution))
        execution = codec.execution_from_proto(convolution.execution)
        asked = codec.gradients_from_proto(convolution)
        if asked:
            check(geometry, asked[1])
        return choose(geometry, execution, self.capabilities, self.limits, asked[0] if asked else None)

    def accept(self, convolution: pb.Convolution) -> Job:
        """A request that can run, decided from its header alone. Raises as `plan` does."""
        return Job(self.plan(convolution), _tensors(convolution))

    def run(self, job: Job, entries: Sequence[memoryview]) -> Outcome:
        """Computes, in the calling thread, with the bytes of the request's tensors.

        Raises:
            InvalidConvolution: the bytes are not those of the headers, or "fft" was asked for and cannot be.
            IntegerOverflow: an integer result does not fit.
            Replanned: the job has to run otherwise.
            LimitExceeded: and that is more than this server takes.
        """
        plan, backend = job.plan, self._backends[job.plan.backend]
        arrays = inline(job.tensors, entries, _unneeded(plan))
        if plan.wanted:
            weight, x = arrays.get("weight"), arrays.get("input")
            return backend.gradients(plan, plan.wanted, weight, x, arrays["grad_output"])
        if plan.algorithm == "fft":
            self._replan_unless_finite(job, arrays)
        prepared = backend.prepare(plan, arrays["weight"], arrays.get("bias"))
        try:
            return backend.run(plan, prepared, arrays["input"])
        except Smeared:
            self._replan(job, f"the sums pass the range of {plan.operation.accumulator.name} within an FFT", "input")

    def _replan_unless_finite(self, job: Job, arrays: dict[str, Array]) -> None:
        for field in ("input", "weight"):
            index = first_nonfinite(arrays[field])
            if index is not None:
                where = f"{field}[{', '.join(map(str, index))}] is {arrays[field][index]}"
                self._replan(job, f"{where}, which an FFT would spread over the whole output", field)

    def _replan(self, job: Job, why: str, field: str) -> NoReturn:
        """Raises Replanned with the job as direct sums, or what refuses it."""
        plan = job.plan
        if plan.execution.algorithm == "fft":
            raise InvalidConvolution(why, field)
        direct = replace(plan.execution, algorithm="direct")
        try:
            chosen = choose(plan.geometry, direct, self.capabilities, self.limits)
        except LimitExceeded as refusal:
            text = f"{why} (work {plan.work}), and by direct sums {refusal}"
            raise LimitExceeded(text, refusal.subject, refusal.limit, refusal.value, refusal.setting) from None
        metrics.REPLANNED.inc()
        raise Replanned(Job(replace(chosen, execution=plan.execution), job.tensors)) from None

    def device(self, plan: Plan) -> str:
        """The name, for people, of what the plan runs on."""
        return self._backends[plan.backend].capability.device


def _tensors(convolution: pb.Convolution) -> dict[str, Sourced]:
    """The tensors of a request for one layer, in the order of tensors."""
    layer = convolution.layers[0]
    sources = {
        "weight": (layer.definition.weight, layer.weight_source),
        "bias": (layer.definition.bias, layer.bias_source),
    }
    if not layer.definition.HasField("bias"):
        del sources["bias"]
    sources["input"] = (convolution.input, convolution.input_source)
    if convolution.HasField("gradients"):
        sources["grad_output"] = (convolution.gradients.grad_output, convolution.gradients.grad_output_source)
    headers = {name: codec.tensor_from_proto(message, name) for name, (message, _) in sources.items()}
    return {name: Sourced(headers[name], source) for name, (_, source) in sources.items()}


def _unneeded(plan: Plan) -> Container[str]:
    """Tensors whose values make no difference."""
    if plan.wanted is None:
        return ()
    needed = {"weight": plan.wanted.input, "input": plan.wanted.weight, "bias": False}
    return {name for name, is_needed in needed.items() if not is_needed}


def _refuse_what_is_to_come(convolution: pb.Convolution) -> None:
    """Parts of the contract that this version does not serve, and of contracts that it does not know."""
    unknown = unknown_field(convolution)
    if unknown:
        raise Unsupported(f"the request has the field {unknown}, which this version of the contract does not know")
    if not convolution.layers:
        raise InvalidConvolution("layers is empty; a request has at least one", "layers")
    kind = convolution.layers[0].WhichOneof("kind")
    if kind is None:
        raise InvalidConvolution("layers[0] is neither a definition, nor a digest, nor pooling", "layers[0]")
    unserved = {
        "stacks": len(convolution.layers) > 1,
        "layers by digest": kind == "digest",
        "pooling": kind == "pooling",
        "shared memory": bool(convolution.output_regions),
    }
    if any(unserved.values()):
        raise Unsupported(f"this version does not serve {next(name for name, wanted in unserved.items() if wanted)}")
