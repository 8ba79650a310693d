"""What a request of any transport goes through: planned (or remembered), scheduled, computed, its answer built."""

from __future__ import annotations

import asyncio
import time
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

from convolver.core import cost, plan_codec
from convolver.core.errors import LimitExceeded
from convolver.core.plan import Plan, Report
from convolver.core.tensors import inline, to_bytes
from convolver.core.wire import join
from convolver.server import metrics
from convolver.server.engine import Replanned
from convolver.server.jobs import layer_count
from convolver.server.remembered import Remembered
from convolver.server.scheduler import drop_tracebacks
from convolver.server.shared_tensors import SharedTensors
from convolver.v1 import plan_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from convolver.core.stack_plan import StackPlan
    from convolver.server.engine import Engine, Held
    from convolver.server.jobs import Job
    from convolver.server.regions import Registry
    from convolver.server.scheduler import Scheduler

    Envelope = Callable[[bytes], bytes]

TINY_SECONDS, TINY_BYTES = 100e-6, 1 << 20
"""What is computed on the event loop (docs/decisions/0010-tiny-sums-on-the-loop.md)."""

FEW_LAYERS = 8
"""Of a request that is planned on the event loop, where health has to be answered too: a thousand take a second."""


class Accepted(NamedTuple):
    """A request that can run, and a serialised Result with its plan alone."""

    job: Job
    result: bytes
    held_bytes: int
    is_tiny: bool

    @property
    def layers(self) -> int:
        """Layers of the request."""
        return len(self.job.sources)


class Arrived(NamedTuple):
    """When a request had come and when it was accepted, in seconds of time.perf_counter."""

    received: float
    accepted: float


class Brought(NamedTuple):
    """What a request uses beside its header: layers of the store, data of its message, and shared memory."""

    held: Held
    entries: Sequence[memoryview]
    shared: SharedTensors


class Requests:
    """The way of each request; `largest_message` are the bytes of the largest answer in one message, `regions` those of
    shared memory, None where none is shared.
    """

    def __init__(
        self, engine: Engine, scheduler: Scheduler, largest_message: int, regions: Registry | None = None
    ) -> None:
        self.engine, self.scheduler, self._largest, self._regions = engine, scheduler, largest_message, regions
        self._remembered = Remembered[Accepted]()

    async def answer(
        self, convolution: bytes, entries: Sequence[memoryview], received: float, envelope: Envelope
    ) -> bytes:
        """The answer's message. `convolution` is serialised, `entries` are its data, `received` is when it had come,
        and `envelope` makes the answer's header of its serialised Result. Raises what the engine raises.
        """
        accepted = await self.accepted(convolution)
        if not accepted.job.output_regions:
            self._check_answer(accepted.job.plan.output_bytes)
        brought = Brought(self.engine.hold(accepted.job), entries, self.shared(accepted.job))
        arrived = Arrived(received, time.perf_counter())
        try:
            return await self._computed(accepted, brought, arrived, envelope)
        except Replanned as again:  # what was in vain counts as planning
            drop_tracebacks(again)
            accepted = await asyncio.to_thread(planned, again.job)
            return await self._computed(accepted, brought, Arrived(received, time.perf_counter()), envelope)

    def shared(self, job: Job) -> SharedTensors:
        """What the job has in shared memory. Raises as SharedTensors."""
        return SharedTensors(job, self._regions)

    async def accepted(self, convolution: bytes) -> Accepted:
        """All that a request's header decides, and so what a header that came before has decided already. Raises what
        the engine's `accept` raises.
        """
        found = self._remembered.get(convolution)
        if found is None:
            if layer_count(convolution) <= FEW_LAYERS:
                found = self._accepted(convolution)
            else:
                found = await asyncio.to_thread(self._accepted, convolution)
            self._remembered.put(convolution, found)
        return found

    def _accepted(self, convolution: bytes) -> Accepted:
        return planned(self.engine.accept(convolution))

    async def _computed(self, accepted: Accepted, brought: Brought, arrived: Arrived, envelope: Envelope) -> bytes:
        work, held_bytes = partial(self._answer, accepted, brought, arrived, envelope), accepted.held_bytes
        if accepted.is_tiny and self.scheduler.has_room(held_bytes):
            return self.scheduler.run_here(held_bytes, work)
        return await self.scheduler.run(held_bytes, work)

    def _answer(self, accepted: Accepted, brought: Brought, arrived: Arrived, envelope: Envelope) -> bytes:
        """The answer's message, its one copy of the output included; in a compute thread, unless it is tiny."""
        queue, job, shared = time.perf_counter() - arrived.accepted, accepted.job, brought.shared
        arrays = inline(job.tensors, brought.entries, job.unneeded, shared.array)
        outcome = self.engine.run(job, brought.held, arrays, shared.out)
        done = time.perf_counter()
        seconds = {"decode": arrived.accepted - arrived.received, "queue": queue, **outcome.seconds}
        result = accepted.result + plan_pb2.Result(report=self.report(job.plan, seconds)).SerializeToString()
        inside = [] if shared.out else list(map(to_bytes, outcome.outputs.values()))
        answer = join(envelope(result), inside)
        self._check_answer(len(answer))
        count(job.plan, {**seconds, "encode": time.perf_counter() - done})
        return answer

    def report(self, plan: Plan | StackPlan, seconds: dict[str, float]) -> plan_pb2.Report:
        """What happened, as it travels."""
        return plan_codec.report_to_proto(Report(self.engine.device(plan), 1, "disabled", seconds))

    def _check_answer(self, size: int) -> None:
        """Raises LimitExceeded for an answer that gRPC would not send, and would blame on nobody."""
        setting = "--max-message"
        if size > self._largest:
            text = (
                f"the answer's message would be {size} bytes, above this server's limit of {self._largest} "
                f"({setting}); ConvolveChunked has none"
            )
            raise LimitExceeded(text, "bytes of the answer's message", self._largest, size, setting)


def planned(job: Job) -> Accepted:
    """The job with all that is remembered of it."""
    result = plan_pb2.Result(plan=plan_codec.plan_to_proto(job.plan)).SerializeToString()
    return Accepted(job, result, job.plan.peak_bytes, _is_tiny(job))


def _is_tiny(job: Job) -> bool:
    """Whether it takes less time than a thread's waking and the loop's: one convolution on the CPU, of few bytes."""
    plan = job.plan
    if not isinstance(plan, Plan) or plan.wanted or plan.backend.startswith("torch:cuda"):
        return False
    is_kept = any(source and source.kept for source in job.sources)  # which takes a hash
    return not is_kept and plan.peak_bytes <= TINY_BYTES and cost.seconds_of(plan) <= TINY_SECONDS


def count(plan: Plan | StackPlan, seconds: dict[str, float]) -> None:
    """Counts what was computed, and the seconds of each phase."""
    for phase, spent in seconds.items():
        _phase(phase, plan.backend).observe(spent)
    transposed = isinstance(plan, Plan) and plan.operation.transposed
    ndim = plan.geometry.ndim if isinstance(plan, Plan) else 0
    operation = metrics.operation(ndim, transposed=transposed, gradients=plan.wanted is not None)
    metrics.MACS.labels(plan.backend, plan.input.dtype, operation).inc(plan.macs)


_phase = cache(metrics.PHASE_SECONDS.labels)  # which takes longer to find its child than that to count
