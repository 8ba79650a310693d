"""What a request does in a compute thread: its arrays, its sums, its answer; alone, or together with others like it."""

from __future__ import annotations

import time
from functools import cache, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from convolver.core import plan_codec, rates
from convolver.core.cancellation import Cancelled
from convolver.core.errors import LimitExceeded
from convolver.core.plan import Plan, Report
from convolver.core.tensors import inline, to_bytes
from convolver.core.wire import join
from convolver.server import metrics
from convolver.server.frames import forget
from convolver.server.outcomes import outcome_of
from convolver.v1 import plan_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from convolver.core.backends import Array
    from convolver.core.joint import Company, Unbatched
    from convolver.core.stack_plan import StackPlan
    from convolver.server.engine import Engine, Held
    from convolver.server.jobs import Job
    from convolver.server.outcomes import Outcome
    from convolver.server.shared_tensors import SharedTensors

    Envelope = Callable[[bytes], bytes]

MOST_HASHED = 1 << 18
"""Bytes of weights that a request brings of which a digest is made, to find others with the same."""


class Accepted(NamedTuple):
    """A request that can run, a serialised Result with its plan alone, and what is known of its cost: the bytes that it
    holds, whether it is so small that it runs on the event loop, its seconds by the cost model and what these are
    learnt under, and what it may run with.
    """

    job: Job
    result: bytes
    held_bytes: int
    is_tiny: bool
    base_seconds: float
    rate: rates.Key
    company: Company

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


class Desk:
    """What all answers need: the engine, how fast it is, and how large a message may be."""

    def __init__(self, engine: Engine, largest_message: int, max_batch: int = 32) -> None:
        self.engine, self.rates, self._largest, self.max_batch = engine, rates.Rates(), largest_message, max_batch

    def seconds(self, accepted: Accepted) -> float:
        """What a request will take, by estimate."""
        return accepted.base_seconds * self.rates.factor(accepted.rate)

    def report(
        self, plan: Plan | StackPlan, seconds: dict[str, float], alone: Unbatched, together: int = 1
    ) -> plan_pb2.Report:
        """What happened, as it travels; counted where it ran alone."""
        why: str = "" if together > 1 else alone if self.max_batch > 1 else "disabled"
        if why:
            metrics.UNBATCHED.labels(why).inc()
        return plan_codec.report_to_proto(Report(self.engine.device(plan), together, why, seconds))

    def check_answer(self, size: int) -> None:
        """Raises LimitExceeded for an answer that gRPC would not send, and would blame on nobody."""
        setting = "--max-message"
        if size > self._largest:
            text = (
                f"the answer's message would be {size} bytes, above this server's limit of {self._largest} "
                f"({setting}); ConvolveChunked has none"
            )
            raise LimitExceeded(text, "bytes of the answer's message", self._largest, size, setting)


class Answering:
    """One request; calling it gives its answer's message. `key` is that of its company and its weights, None where it
    runs alone.
    """

    def __init__(self, desk: Desk, accepted: Accepted, brought: Brought, arrived: Arrived, envelope: Envelope) -> None:
        self._desk, self._accepted, self._brought = desk, accepted, brought
        self._arrived, self._envelope = arrived, envelope

    @property
    def key(self) -> bytes | None:
        """Made anew each time: what runs at once needs none."""
        company, job = self._accepted.company, self._accepted.job
        weights = _weights_id(job, self._brought.entries) if company.key else None
        return None if weights is None else company.key + weights

    @property
    def _reason(self) -> Unbatched:
        """Why it runs alone, if it does."""
        company, entries = self._accepted.company, self._brought.entries
        return "ineligible" if company.key and not _are_compared(self._accepted.job, entries) else company.reason

    def __call__(self) -> bytes:
        """Alone. Raises what the engine raises."""
        begin, job = time.perf_counter(), self._accepted.job
        outcome = self._desk.engine.run(job, self._brought.held, self._arrays(), self._brought.shared.out)
        spent = sum(outcome.seconds.values())
        self._desk.rates.learn(self._accepted.rate, self._accepted.base_seconds, spent)
        return self._answer(begin, outcome.outputs, outcome.seconds, 1)

    def together(self, works: Sequence[Answering]) -> list[Outcome]:
        """The answers of all, itself among them. Where that fails each runs alone: only one of them may be to blame."""
        begin, desk = time.perf_counter(), self._desk
        try:
            arrays = [work._arrays() for work in works]  # noqa: SLF001  # its own class
            inputs = [each["input"] for each in arrays]
            own = self._accepted
            ran = desk.engine.joint_runs.run(own.job, own.company, self._brought.held, arrays[0], inputs)
        except Cancelled as error:
            return [(None, error) for _ in works]
        except Exception as error:  # noqa: BLE001  # each of them will raise its own
            forget(error)
            return [outcome_of(work) for work in works]
        desk.rates.learn(rates.key(ran.plan), rates.base_seconds(ran.plan), sum(ran.seconds.values()))
        return [
            outcome_of(partial(work._answer, begin, {"output": output}, ran.seconds, len(works)))  # noqa: SLF001
            for work, output in zip(works, ran.outputs, strict=True)
        ]

    def _arrays(self) -> dict[str, Array]:
        job, brought = self._accepted.job, self._brought
        return inline(job.tensors, brought.entries, job.unneeded, brought.shared.array)

    def _answer(self, begin: float, outputs: Mapping[str, Array], spent: dict[str, float], together: int) -> bytes:
        """The message, with its one copy of the outputs."""
        done, plan, (received, accepted) = time.perf_counter(), self._accepted.job.plan, self._arrived
        seconds = {"decode": accepted - received, "queue": begin - accepted, **spent}
        report = self._desk.report(plan, seconds, self._reason, together)
        result = self._accepted.result + plan_pb2.Result(report=report).SerializeToString()
        inside = [] if self._brought.shared.out else list(map(to_bytes, outputs.values()))
        answer = join(self._envelope(result), inside)
        self._desk.check_answer(len(answer))
        count(plan, {**seconds, "encode": time.perf_counter() - done})
        return answer


def count(plan: Plan | StackPlan, seconds: dict[str, float]) -> None:
    """Counts what was computed, and the seconds of each phase."""
    for phase, spent in seconds.items():
        _phase(phase, plan.backend).observe(spent)
    transposed = isinstance(plan, Plan) and plan.operation.transposed
    ndim = plan.geometry.ndim if isinstance(plan, Plan) else 0
    operation = metrics.operation(ndim, transposed=transposed, gradients=plan.wanted is not None)
    metrics.MACS.labels(plan.backend, plan.input.dtype, operation).inc(plan.macs)


_phase = cache(metrics.PHASE_SECONDS.labels)  # which takes longer to find its child than that to count


def _weights_id(job: Job, entries: Sequence[memoryview]) -> bytes | None:
    """What tells the weights of a request from others of its shapes, None where that would take too long: the digests
    of layers that stay, and of those that it brings one of our own.
    """
    if not _are_compared(job, entries):
        return None
    made = blake2b(digest_size=16)
    for source in job.sources:
        made.update((source.digest if source else "").encode() + b"\0")
    for entry in entries[:-1]:
        made.update(entry)
    return made.digest()


def _are_compared(job: Job, entries: Sequence[memoryview]) -> bool:
    """Whether a request's weights are compared with those of others: they stand in order, and are not too many."""
    in_order = all(given.source.WhichOneof("source") is None for given in job.tensors.values())
    return in_order and len(entries) == len(job.tensors) and sum(map(len, entries[:-1])) <= MOST_HASHED
