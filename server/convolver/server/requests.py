"""What a request of any transport goes through: planned (or remembered), scheduled, computed, its answer built."""

from __future__ import annotations

import asyncio
import time
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

from convolver.core import cost, plan_codec
from convolver.core.errors import LimitExceeded
from convolver.core.plan import Plan, Report
from convolver.core.tensors import to_bytes
from convolver.core.wire import join
from convolver.server import metrics
from convolver.server.engine import Replanned
from convolver.server.jobs import layer_count
from convolver.server.remembered import Remembered
from convolver.v1 import plan_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from convolver.core.stack_plan import StackPlan
    from convolver.server.engine import Engine, Held
    from convolver.server.jobs import Job
    from convolver.server.scheduler import Scheduler

    Envelope = Callable[[plan_pb2.Result], bytes]

TINY_SECONDS, TINY_BYTES = 100e-6, 1 << 20
"""What is computed on the event loop (docs/decisions/0010-tiny-sums-on-the-loop.md)."""

FEW_LAYERS = 8
"""Of a request that is planned on the event loop, where health has to be answered too: a thousand take a second."""


class Accepted(NamedTuple):
    """A request that can run, and its plan as it travels."""

    job: Job
    plan: plan_pb2.Plan
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


class Requests:
    """The way of each request; `largest_message` are the bytes of the largest answer."""

    def __init__(self, engine: Engine, scheduler: Scheduler, largest_message: int) -> None:
        self._engine, self._scheduler, self._largest = engine, scheduler, largest_message
        self._remembered = Remembered[Accepted]()

    async def answer(
        self, convolution: bytes, entries: Sequence[memoryview], received: float, envelope: Envelope
    ) -> bytes:
        """The answer's message. `convolution` is serialised, `entries` are its data, `received` is when it had come,
        and `envelope` makes the answer's header of its result. Raises what the engine raises.
        """
        accepted = self._remembered.get(convolution)
        if accepted is None:
            accepted = await self._accepted_anew(convolution)
            self._remembered.put(convolution, accepted)
        held = self._engine.hold(accepted.job)
        arrived = Arrived(received, time.perf_counter())
        try:
            return await self._computed(accepted, held, entries, arrived, envelope)
        except Replanned as again:  # what was in vain counts as planning
            planned = await asyncio.to_thread(_planned, again.job)
            return await self._computed(planned, held, entries, Arrived(received, time.perf_counter()), envelope)

    async def _computed(
        self, accepted: Accepted, held: Held, entries: Sequence[memoryview], arrived: Arrived, envelope: Envelope
    ) -> bytes:
        work, held_bytes = partial(self._answer, accepted, held, entries, arrived, envelope), accepted.held_bytes
        if accepted.is_tiny and self._scheduler.has_room(held_bytes):
            return self._scheduler.run_here(held_bytes, work)
        return await self._scheduler.run(held_bytes, work)

    async def _accepted_anew(self, convolution: bytes) -> Accepted:
        if layer_count(convolution) <= FEW_LAYERS:
            return self._accepted(convolution)
        return await asyncio.to_thread(self._accepted, convolution)

    def _accepted(self, convolution: bytes) -> Accepted:
        """All that a request's header decides, and so what a header that came before has decided already."""
        job = self._engine.accept(convolution)
        self._check_answer(job.plan.output_bytes)
        return _planned(job)

    def _answer(
        self, accepted: Accepted, held: Held, entries: Sequence[memoryview], arrived: Arrived, envelope: Envelope
    ) -> bytes:
        """The answer's message, its one copy of the output included; in a compute thread, unless it is tiny."""
        queue, plan = time.perf_counter() - arrived.accepted, accepted.job.plan
        outcome = self._engine.run(accepted.job, held, entries)
        done = time.perf_counter()
        seconds = {"decode": arrived.accepted - arrived.received, "queue": queue, **outcome.seconds}
        report = Report(self._engine.device(plan), 1, "disabled", seconds)
        result = plan_pb2.Result(plan=accepted.plan, report=plan_codec.report_to_proto(report))
        answer = join(envelope(result), [to_bytes(array) for array in outcome.outputs.values()])
        self._check_answer(len(answer))
        _count(plan, {**seconds, "encode": time.perf_counter() - done})
        return answer

    def _check_answer(self, size: int) -> None:
        """Raises LimitExceeded for an answer that gRPC would not send, and would blame on nobody."""
        setting = "--max-message"
        if size > self._largest:
            text = (
                f"the answer's message would be {size} bytes, above this server's limit of {self._largest} ({setting})"
            )
            raise LimitExceeded(text, "bytes of the answer's message", self._largest, size, setting)


def _planned(job: Job) -> Accepted:
    return Accepted(job, plan_codec.plan_to_proto(job.plan), job.plan.peak_bytes, _is_tiny(job))


def _is_tiny(job: Job) -> bool:
    """Whether it takes less time than a thread's waking and the loop's: one convolution on the CPU, of few bytes."""
    plan = job.plan
    if not isinstance(plan, Plan) or plan.wanted or plan.backend.startswith("torch:cuda"):
        return False
    is_kept = any(source and source.kept for source in job.sources)  # which takes a hash
    return not is_kept and plan.peak_bytes <= TINY_BYTES and cost.seconds_of(plan) <= TINY_SECONDS


def _count(plan: Plan | StackPlan, seconds: dict[str, float]) -> None:
    for phase, spent in seconds.items():
        _phase(phase, plan.backend).observe(spent)
    transposed = isinstance(plan, Plan) and plan.operation.transposed
    ndim = plan.geometry.ndim if isinstance(plan, Plan) else 0
    operation = metrics.operation(ndim, transposed=transposed, gradients=plan.wanted is not None)
    metrics.MACS.labels(plan.backend, plan.input.dtype, operation).inc(plan.macs)


_phase = cache(metrics.PHASE_SECONDS.labels)  # which takes longer to find its child than that to count
