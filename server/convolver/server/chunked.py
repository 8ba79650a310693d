"""ConvolveChunked: one request of any size, whose tensors come and go in pieces. It is admitted on its header, before
its data is read; where its convolution can be run in parts, they run while others are on their way.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from convolver.core.chunks import chunks
from convolver.core.errors import InvalidConvolution
from convolver.core.tensors import sent, to_bytes
from convolver.core.wire import join
from convolver.server.answering import count
from convolver.server.callers import OfCall
from convolver.server.chunks import Incoming, Messages, Outgoing, Progress, unless_stalled
from convolver.server.engine import Replanned
from convolver.server.frames import drop_tracebacks
from convolver.server.incoming import IncomingTensors
from convolver.server.piecewise import Piecewise
from convolver.server.requests import planned
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence

    import grpc

    from convolver.core.backends import Outcome
    from convolver.core.operation import Tensor
    from convolver.core.pieces import Piece
    from convolver.server.answering import Accepted
    from convolver.server.engine import Held
    from convolver.server.jobs import Job
    from convolver.server.requests import Requests
    from convolver.server.scheduler import Lease
    from convolver.server.shared_tensors import SharedTensors

    Context = grpc.aio.ServicerContext[Any, Any]


class ConvolveChunked:
    """One call. A side that neither sends nor takes for `idle_seconds` ends it."""

    def __init__(self, requests: Requests, context: Context, idle_seconds: float) -> None:
        self._requests, self._engine, self._context = requests, requests.engine, context
        self._outgoing, self._idle = Outgoing(context, idle_seconds), idle_seconds
        self._seconds = defaultdict[str, float](float)

    async def run(self, messages: AsyncIterator[bytes]) -> None:
        """Answers the call. Raises what the engine raises, and InvalidConvolution for data that is not the header's."""
        incoming = Incoming(Messages(messages, self._idle))
        await unless_stalled(self._answer(incoming), self._context)

    async def _answer(self, incoming: Incoming) -> None:
        convolution, received = await incoming.header(), time.perf_counter()
        accepted = await self._requests.accepted(convolution)
        held, tensors = self._engine.hold(accepted.job), _tensors(accepted)
        shared = self._requests.shared(accepted.job)
        parts = await self._engine.parts(convolution, accepted.job)
        self._lap("decode", received)
        async with self._memory(accepted, parts.held_bytes) as lease:
            await self._outgoing.begin()
            data = IncomingTensors(tensors)
            if parts.pieces:
                await self._in_pieces(accepted, held, parts.pieces, incoming, data, lease)
            else:
                await self._as_a_whole(accepted, held, shared, incoming, data, lease)

    async def _as_a_whole(
        self,
        accepted: Accepted,
        held: Held,
        shared: SharedTensors,
        incoming: Incoming,
        data: IncomingTensors,
        lease: Lease,
    ) -> None:
        await incoming.data(data, Progress())
        accepted, outcome = await self._computed(accepted, held, shared, data, lease)
        self._spent(outcome.seconds)
        views = [] if shared.out else [to_bytes(array) for array in outcome.outputs.values()]
        done = Progress()
        done.advance(sum(view.nbytes for view in views))
        await self._send(accepted, views, done)
        await self._finish(accepted)

    async def _computed(
        self, accepted: Accepted, held: Held, shared: SharedTensors, data: IncomingTensors, lease: Lease
    ) -> tuple[Accepted, Outcome]:
        """What ran in the end, and its outcome."""

        def run(job: Job) -> Outcome:
            return self._engine.run(job, held, {**data.arrays(), **shared.arrays()}, shared.out)

        lease.extend(self._requests.desk.seconds(accepted))
        try:
            return accepted, await lease.run(lambda: run(accepted.job))
        except Replanned as again:
            drop_tracebacks(again)
            job = again.job
        begin = time.perf_counter()  # what was in vain counts as planning
        direct = await asyncio.to_thread(planned, job)
        self._lap("decode", begin)
        lease.extend(self._requests.desk.seconds(direct))
        return direct, await lease.run(lambda: run(job))

    async def _in_pieces(
        self,
        accepted: Accepted,
        held: Held,
        pieces: Sequence[Piece],
        incoming: Incoming,
        data: IncomingTensors,
        lease: Lease,
    ) -> None:
        work = Piecewise(self._engine, accepted.job, held, data)
        await _together(
            incoming.data(data, work.come),
            work.run(pieces, lease, self._requests.desk.seconds(accepted)),
            self._send(accepted, [to_bytes(work.out)], work.made),
        )
        self._spent(work.seconds)
        await self._finish(accepted)

    async def _send(self, accepted: Accepted, views: Sequence[memoryview], made: Progress) -> None:
        """The answer but for its report, as it is made."""
        field = pb.ConvolveChunkedResponse.RESULT_FIELD_NUMBER
        await self._outgoing.send(join(b"", [accepted.result], field=field, filler=None))
        end = 0
        for data in chunks(views):
            end += sum(part.nbytes for part in data)
            await made.reach(end)
            await self._outgoing.send(b"", data)

    async def _finish(self, accepted: Accepted) -> None:
        plan, seconds = accepted.job.plan, dict(self._seconds)
        desk, sums = self._requests.desk, ("copy_in", "compute", "copy_out")
        desk.rates.learn(accepted.rate, accepted.base_seconds, sum(seconds.get(phase, 0.0) for phase in sums))
        reason = accepted.company.reason
        report = desk.report(plan, seconds, "ineligible" if reason == "alone" else reason)
        await self._outgoing.send(pb.ConvolveChunkedResponse(report=report).SerializeToString())
        count(plan, seconds)

    @asynccontextmanager
    async def _memory(self, accepted: Accepted, held_bytes: int) -> AsyncIterator[Lease]:
        """Those bytes, once they are to be had."""
        begin = time.perf_counter()
        lease = await self._requests.admitted_ahead(accepted, held_bytes, OfCall(self._context))
        self._lap("queue", begin)
        try:
            yield lease
        finally:
            lease.close()

    def _lap(self, phase: str, begin: float) -> None:
        self._spent({phase: time.perf_counter() - begin})

    def _spent(self, seconds: Mapping[str, float]) -> None:
        for phase, spent in seconds.items():
            self._seconds[phase] += spent


def _tensors(accepted: Accepted) -> dict[str, Tensor]:
    """What comes in chunks: what is not in shared memory. Raises InvalidConvolution for a source that chunks do not
    have.
    """
    job = accepted.job
    tensors = sent(job.tensors, job.unneeded)
    for name, (_, source) in tensors.items():
        if source.HasField("index"):
            field = f"{name}_source"
            raise InvalidConvolution(f"{field} is an index, but chunks come in the order of tensors", field)
    return {name: tensor for name, (tensor, source) in tensors.items() if not source.HasField("region")}


async def _together(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs them side by side. The first error is raised, once the others have ended too."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
