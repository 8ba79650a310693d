"""What a request of any transport goes through: planned (or remembered), scheduled, computed, its answer built."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from convolver.core import cost, joint, plan_codec, rates
from convolver.core.plan import Plan
from convolver.core.stack_plan import tensor_bytes
from convolver.server import metrics
from convolver.server.answering import Accepted, Answering, Arrived, Brought, Desk
from convolver.server.demand import Demand
from convolver.server.engine import Replanned
from convolver.server.frames import drop_tracebacks
from convolver.server.jobs import layer_count
from convolver.server.remembered import Remembered
from convolver.server.shared_tensors import SharedTensors
from convolver.v1 import plan_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.server.answering import Envelope
    from convolver.server.callers import Caller
    from convolver.server.jobs import Job
    from convolver.server.regions import Registry
    from convolver.server.scheduler import Lease, Scheduler

TINY_SECONDS, TINY_BYTES = 100e-6, 1 << 20
"""What is computed on the event loop (docs/decisions/0010-tiny-sums-on-the-loop.md)."""

FEW_LAYERS = 8
"""Of a request that is planned on the event loop, where health has to be answered too: a thousand take a second."""


class Requests:
    """The way of each request; `regions` are those of shared memory, None where none is shared."""

    def __init__(self, desk: Desk, scheduler: Scheduler, regions: Registry | None = None) -> None:
        self.desk, self.engine, self.scheduler, self._regions = desk, desk.engine, scheduler, regions
        self._remembered = Remembered[Accepted]()

    async def answer(
        self, convolution: bytes, entries: Sequence[memoryview], received: float, envelope: Envelope, caller: Caller
    ) -> bytes:
        """The answer's message. `convolution` is serialised, `entries` are its data, `received` is when it had come,
        and `envelope` makes the answer's header of its serialised Result. Raises what the engine raises, and
        Overloaded.
        """
        accepted = await self.accepted(convolution)
        if not accepted.job.output_regions:
            self.desk.check_answer(accepted.job.plan.output_bytes)
        brought = Brought(self.engine.hold(accepted.job), entries, self.shared(accepted.job))
        arrived = Arrived(received, time.perf_counter())
        try:
            return await self._computed(accepted, brought, arrived, envelope, caller)
        except Replanned as again:  # what was in vain counts as planning
            drop_tracebacks(again)
            accepted = await asyncio.to_thread(planned, again.job)
            arrived = Arrived(received, time.perf_counter())
            return await self._computed(accepted, brought, arrived, envelope, caller)

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

    async def admitted_ahead(self, accepted: Accepted, held_bytes: int, caller: Caller) -> Lease:
        """So many bytes for a request whose data is still to come, once they are to be had. Its seconds are for the
        lease to be extended by when the data is there: until then nobody waits for them. Raises Overloaded.
        """
        demand = self._demand(accepted, held_bytes, caller)
        self.scheduler.check(demand)
        return await self.scheduler.admitted(replace(demand, seconds=0.0))

    def _demand(self, accepted: Accepted, held_bytes: int, caller: Caller, waiting_bytes: int = 0) -> Demand:
        factor = self.desk.rates.factor(accepted.rate)
        return Demand(
            held_bytes,
            accepted.base_seconds * factor,
            caller.name,
            accepted.job.plan.execution.priority,
            caller.deadline,
            waiting_bytes,
            is_learnt=factor != 1.0,
        )

    def _accepted(self, convolution: bytes) -> Accepted:
        return planned(self.engine.accept(convolution))

    async def _computed(
        self, accepted: Accepted, brought: Brought, arrived: Arrived, envelope: Envelope, caller: Caller
    ) -> bytes:
        work = Answering(self.desk, accepted, brought, arrived, envelope)
        if accepted.is_tiny and self.scheduler.has_room(accepted.held_bytes):
            metrics.BATCH_SIZE.observe(1)
            return self.scheduler.run_here(accepted.held_bytes, work)
        waiting_bytes = sum(map(len, brought.entries))
        lease = await self.scheduler.admitted(self._demand(accepted, accepted.held_bytes, caller, waiting_bytes))
        try:
            answer: bytes = await lease.run(work)
        except BaseException:
            lease.close()
            raise
        lease.shrink(len(answer) + (waiting_bytes if caller.keeps_message else 0))
        caller.when_gone(lease.close)
        return answer


def planned(job: Job) -> Accepted:
    """The job with all that is remembered of it."""
    plan = job.plan
    result = plan_pb2.Result(plan=plan_codec.plan_to_proto(plan)).SerializeToString()
    company = joint.company(plan)
    if job.uses_regions or any(source and source.kept for source in job.sources):  # which have a place of their own
        company = joint.Company(b"", "ineligible", company.items)
    base, rate = rates.base_seconds(plan), rates.key(plan)
    copied = tensor_bytes(plan.input) if company.key else 0  # what runs together does so behind one another
    stored = plan.input_bytes - sum(tensor_bytes(tensor) for tensor, _ in job.tensors.values())  # the layer budget's
    return Accepted(job, result, plan.peak_bytes - stored + copied, _is_tiny(job), base, rate, company)


def _is_tiny(job: Job) -> bool:
    """Whether it takes less time than a thread's waking and the loop's: one convolution on the CPU, of few bytes."""
    plan = job.plan
    if not isinstance(plan, Plan) or plan.wanted or plan.backend.startswith("torch:cuda"):
        return False
    is_kept = any(source and source.kept for source in job.sources)  # which takes a hash
    return not is_kept and plan.peak_bytes <= TINY_BYTES and cost.seconds_of(plan) <= TINY_SECONDS
