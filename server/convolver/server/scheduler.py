"""When accepted work runs: it waits for bytes of the memory budget, then for a thread, in an order that is fair between
callers; what would wait too long is refused before it waits.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, cast

from convolver.core.errors import Overloaded
from convolver.server import metrics
from convolver.server.demand import Backlog, Demand
from convolver.server.fair_queue import FairQueue, Waiting
from convolver.server.launches import Launches, saved
from convolver.server.outcomes import outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")

LONGEST_RETRY, SHORTEST_RETRY = 5.0, 0.05
"""Seconds after which who was refused may come again."""

FULL = 0.9
"""The part of the queue's bound that it is to be down to when who was refused for it comes again: others come too."""

WAITING_SHARE = 4
"""The part of the memory budget that messages may take which wait for memory: one in so many."""


class Scheduler:
    """It belongs to one event loop.

    A caller that is cancelled (its deadline passed, it hung up) takes its work out of the queue; what runs already is
    told to stop, and gives its bytes back when it has.
    """

    def __init__(
        self,
        threads: int,
        memory_budget: int,
        *,
        queue_seconds: float = 10.0,
        max_batch: int = 32,
        max_delay: float = 0.0,
    ) -> None:
        self.launches = Launches(threads, max_batch, max_delay)
        self._threads, self._budget, self._bound = threads, memory_budget, queue_seconds
        self._held = self._waiting_bytes = 0
        self._queue, self._turns = FairQueue(), dict[Waiting, asyncio.Future[None]]()
        self._backlog = Backlog()
        self._in_flight = 0

    async def run(self, demand: Demand, work: Callable[[], Result]) -> Result:
        """What `work` returns, called in a thread while the demand's bytes (at most the budget) are held. Raises
        Overloaded.
        """
        lease = await self.admitted(demand)
        try:
            return await lease.run(work)
        finally:
            lease.close()

    async def admitted(self, demand: Demand) -> Lease:
        """Waits until so many bytes (at most the budget) fit, and holds them until the lease is closed.

        Raises Overloaded where it would wait for longer than the queue may be or than its deadline, and where the
        messages that wait take too much.
        """
        self.check(demand)
        self._backlog.enter(demand)
        self._count(1)
        try:
            await self._admitted(demand)
        except BaseException:
            self._backlog.leave(demand, demand.seconds)
            self._count(-1)
            raise
        return Lease(self, demand)

    def has_room(self, held_bytes: int) -> bool:
        """Whether work of so many bytes fits now, be it that larger work waits: it is over before that could begin."""
        return self._held + held_bytes <= self._budget

    def run_here(self, held_bytes: int, work: Callable[[], Result]) -> Result:
        """What `work` returns, called at once, in the loop's own thread; for what takes less than going elsewhere."""
        self._count(1)
        self._hold(held_bytes)
        result, error = outcome_of(work)
        self._hold(-held_bytes)
        self._count(-1)
        if error is not None:
            raise error
        return cast("Result", result)

    def close(self) -> None:
        """Forgets what waits for a thread, and ends each thread when it has finished what it runs."""
        self.launches.close()

    @property
    def busy(self) -> bool:
        """Whether work waits or runs, be it that its caller has left."""
        return self._in_flight > 0

    def change(self, demand: Demand, seconds: float) -> None:
        """So many more seconds of it are to be done by estimate; less, where that is negative. For leases."""
        self._backlog.change(demand, seconds)
        metrics.BACKLOG_SECONDS.set(self._backlog.seconds)

    def give_back(self, demand: Demand, held_bytes: int, seconds: float) -> None:
        """The demand is done; what was left of it is not to be. For leases."""
        self._hold(-held_bytes)
        self._backlog.leave(demand, seconds)
        self._count(-1)
        self._admit()

    def shrink(self, held_bytes: int) -> None:
        """So many bytes are not needed any more; for leases."""
        self._hold(-held_bytes)
        self._admit()

    def check(self, demand: Demand) -> None:
        """Raises Overloaded for what would not be done in time."""
        wait = self._backlog.before(demand) / self._threads
        left = demand.deadline - asyncio.get_running_loop().time()
        if wait > self._bound:
            text = f"{wait:.2f} s of work are before it, above this server's bound of {self._bound} s (--queue-seconds)"
            raise Overloaded(text, _retry_after(wait - FULL * self._bound))
        wait = max(wait, self.launches.until_free)  # what runs is not interrupted
        if wait and demand.is_learnt and wait + demand.seconds > left:  # an idle server tries, and so learns it anew
            text = f"it would be done in {wait + demand.seconds:.3g} s by estimate, and its deadline is in {left:.3g} s"
            raise Overloaded(text, _retry_after(wait))

    async def _admitted(self, demand: Demand) -> None:
        if not self._queue and self._fits(demand):
            self._hold(demand.held_bytes)
            return
        most = self._budget // WAITING_SHARE
        if self._waiting_bytes and self._waiting_bytes + demand.waiting_bytes > most:  # one may, however large
            text = f"{self._waiting_bytes} bytes of messages wait for memory, of {most} (a quarter of --memory-budget)"
            raise Overloaded(text, _retry_after(self._backlog.seconds / self._threads))
        await self._turn(Waiting(demand, demand.seconds))

    async def _turn(self, waiting: Waiting) -> None:
        turn = self._turns[waiting] = asyncio.get_running_loop().create_future()
        self._queue.push(waiting)
        self._waiting_bytes += waiting.demand.waiting_bytes
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was granted in the same moment
                self._hold(-waiting.demand.held_bytes)
            else:
                self._queue.leave(waiting)
            saved("memory", waiting.demand.seconds)
            self._admit()
            raise
        finally:
            self._waiting_bytes -= waiting.demand.waiting_bytes
            del self._turns[waiting]

    def _admit(self) -> None:
        """Grants turns to those whose bytes fit."""
        while (head := self._queue.head()) and self._fits(head.demand):
            turn = self._turns[head]
            if turn.cancelled():
                self._queue.leave(head)
                continue
            self._queue.take(head)
            self._hold(head.demand.held_bytes)
            turn.set_result(None)

    def _fits(self, demand: Demand) -> bool:
        return self._held + demand.held_bytes <= self._budget

    def _hold(self, held_bytes: int) -> None:
        self._held += held_bytes
        metrics.MEMORY_BYTES.set(self._held)

    def _count(self, change: int) -> None:
        self._in_flight += change
        metrics.IN_FLIGHT.set(self._in_flight)
        metrics.BACKLOG_SECONDS.set(self._backlog.seconds)


class Lease:
    """Bytes that are held for a request: until it is closed, and longer while work that it began still runs."""

    def __init__(self, scheduler: Scheduler, demand: Demand) -> None:
        self._scheduler, self._demand = scheduler, demand
        self._held, self._seconds, self._uses = demand.held_bytes, demand.seconds, 1

    async def run(self, work: Callable[[], Result], seconds: float | None = None) -> Result:
        """What `work` returns, called in a thread in its turn; `seconds` is its part of the estimate, all that is left
        unless it is given. Work that has a `key` and `together` may run with others of that key.
        """
        share = self._seconds if seconds is None else min(seconds, self._seconds)
        self._uses += 1
        self._seconds -= share
        try:
            result: Result = await self._scheduler.launches.run(work, Waiting(self._demand, share), self)
        finally:
            self._scheduler.change(self._demand, -share)
        return result

    @property
    def seconds(self) -> float:
        """What is left of its estimate."""
        return self._seconds

    def extend(self, seconds: float) -> None:
        """So many seconds more are to be done than was estimated."""
        self._seconds += seconds
        self._scheduler.change(self._demand, seconds)

    def shrink(self, held_bytes: int) -> None:
        """It holds no more than so many bytes from now on."""
        if held_bytes < self._held:
            less, self._held = self._held - held_bytes, held_bytes
            self._scheduler.shrink(less)

    def close(self, *_: Any) -> None:  # noqa: ANN401  # gRPC calls it with a context
        """One use less, the request's own or that of work of its; the last one gives the bytes back."""
        self._uses -= 1
        if not self._uses:
            self._scheduler.give_back(self._demand, self._held, self._seconds)


def _retry_after(seconds: float) -> float:
    return min(LONGEST_RETRY, max(SHORTEST_RETRY, seconds))
