"""What runs on the compute threads: one after the other in fair turns, requests that are alike together."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol, cast

from convolver.core.cancellation import Cancelled, Stop, stopping
from convolver.server import metrics
from convolver.server.fair_queue import FairQueue, Waiting
from convolver.server.frames import drop_tracebacks
from convolver.server.outcomes import Outcome, give_way, outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

LAUNCH_SECONDS, LAUNCH_BYTES = 0.1, 256 << 20
"""What runs together takes at most so long by its estimates, and holds at most so much: others wait for it."""


class Joint(Protocol):
    """Work that may run with others of its `key`, unless that is None. Any other callable is work that runs alone."""

    @property
    def key(self) -> Hashable | None:
        """Asked for when it has to wait."""

    def __call__(self) -> object:
        """In a compute thread, alone."""

    def together(self, works: Sequence[Any]) -> list[Outcome]:
        """What all of these, of its key and itself among them, returned or raised; in a compute thread."""


class Use(Protocol):
    """What is held until the work is done."""

    def close(self) -> None:
        """It is."""


@dataclass(eq=False, slots=True)
class _Entry:
    """Work that waits or runs, who waits for it, and what is held meanwhile."""

    work: Callable[[], Any]
    done: asyncio.Future[Any]
    use: Use
    waiting: Waiting
    since: float
    launch: _Launch | None = None


class _Launch:
    """What has one thread. It is told to stop once nobody waits for any of it; `is_over` once that thread is free."""

    def __init__(self, entries: list[_Entry], begin: float) -> None:
        self.entries, self.begin = entries, begin
        self.seconds = sum(entry.waiting.seconds for entry in entries)
        self.stop, self.left = Stop(), 0
        self.has_begun = self.is_abandoned = self.is_over = False


@dataclass(eq=False, slots=True)
class _Lobby:
    """Those alike that wait for company, and what will end that."""

    entries: list[_Entry]
    end: asyncio.TimerHandle


class Launches:
    """As many at one time as there are threads, and as many again that nobody waits for any more. It belongs to one
    event loop.
    """

    def __init__(self, threads: int, max_batch: int, max_delay: float) -> None:
        self._threads, self._is_closed = threads, False
        self._pool = self._new_pool()
        self._free, self._abandoned = threads, 0
        self._max_batch, self._max_delay = max_batch, max_delay
        self._queue, self._entries = FairQueue(), dict[Waiting, _Entry]()
        self._lobbies: dict[Hashable, _Lobby] = {}
        self._running = set[_Launch]()

    async def run(self, work: Callable[[], Any], waiting: Waiting, use: Use) -> Any:  # noqa: ANN401  # what the work returns
        """What the work returns, in its turn. `use` is closed when that is over, which it may not be when the caller is
        cancelled.
        """
        loop = asyncio.get_running_loop()
        entry = _Entry(work, loop.create_future(), use, waiting, loop.time())
        self._enter(entry)
        del work
        try:
            return await entry.done
        except asyncio.CancelledError:
            self._leave(entry)
            raise
        finally:
            del entry  # else this frame and what was raised would hold each other

    def close(self) -> None:
        """Forgets what waits, and ends each thread when it has finished what it runs."""
        self._is_closed = True
        for entry in list(self._entries.values()):
            self._drop(entry)
            entry.done.cancel()
        for key in list(self._lobbies):
            self._lobbies.pop(key).end.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _new_pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(2 * self._threads, thread_name_prefix="compute", initializer=give_way)

    @property
    def until_free(self) -> float:
        """Seconds until a thread is free, by estimate."""
        now = asyncio.get_running_loop().time()
        ends = (max(0.0, launch.begin + launch.seconds - now) for launch in self._running if not launch.is_abandoned)
        return 0.0 if self._free else min(ends, default=0.0)

    def _enter(self, entry: _Entry) -> None:
        """To the queue; where something runs, a while later if it may have company by then."""
        if self._max_batch > 1 and ((self._max_delay and self._running) or not self._free):
            entry.waiting.key = getattr(entry.work, "key", None)
        self._entries[entry.waiting] = entry
        key = entry.waiting.key
        if key is None or not self._max_delay or not self._running:
            self._queue.push(entry.waiting)
            self._dispatch()
            return
        lobby = self._lobbies.get(key)
        if lobby is None:
            end = asyncio.get_running_loop().call_later(self._max_delay, self._admit, key)
            lobby = self._lobbies[key] = _Lobby([], end)
        lobby.entries.append(entry)
        if len(lobby.entries) >= self._max_batch:
            self._admit(key)

    def _admit(self, key: Hashable) -> None:
        """Those of the lobby that are alike go to the queue."""
        lobby = self._lobbies.pop(key)
        lobby.end.cancel()
        for entry in lobby.entries:
            self._queue.push(entry.waiting)
        self._dispatch()

    def _dispatch(self) -> None:
        """Starts what there are threads for."""
        while self._free and (head := self._queue.head()):
            group = self._group(head)
            for waiting in group:
                self._queue.take(waiting)
            self._launch([self._entries.pop(waiting) for waiting in group])

    def _group(self, head: Waiting) -> list[Waiting]:
        """Those that run with it, itself first."""
        seconds = size = 0.0

        def fits(waiting: Waiting) -> bool:
            nonlocal seconds, size
            seconds, size = seconds + waiting.seconds, size + waiting.demand.held_bytes
            return seconds <= LAUNCH_SECONDS and size <= LAUNCH_BYTES

        fits(head)
        return [head, *takewhile(fits, self._queue.company(head, self._max_batch - 1))]

    def _launch(self, entries: list[_Entry]) -> None:
        now = asyncio.get_running_loop().time()
        launch = _Launch(entries, now)
        for entry in entries:
            entry.launch = launch
            metrics.QUEUE_SECONDS.observe(now - entry.since)
        if hasattr(entries[0].work, "together"):  # not of parts of requests, which are none
            metrics.BATCH_SIZE.observe(len(entries))
        self._free -= 1
        self._running.add(launch)
        try:
            self._pool.submit(self._compute, launch, asyncio.get_running_loop())
        except RuntimeError as error:  # it is closed, or there is no thread to be had
            launch.stop.set()  # the pool has it all the same, for a thread that becomes free
            if not self._is_closed:  # and would take that one for two from then on
                self._pool.shutdown(wait=False)
                self._pool = self._new_pool()
            outcomes = [(None, error.with_traceback(None))] * len(entries)
            asyncio.get_running_loop().call_soon(self._finish, launch, outcomes, 0.0)

    def _leave(self, entry: _Entry) -> None:
        """Its caller does not wait any more."""
        launch = entry.launch
        if launch is None:
            self._drop(entry)
            return
        launch.left += 1
        if launch.left == len(launch.entries) and not launch.is_over:
            launch.stop.set()
            if self._abandoned < self._threads:  # what does not stop shall not stop others
                launch.is_abandoned = True
                self._abandoned += 1
                self._free += 1
                self._dispatch()

    def _drop(self, entry: _Entry) -> None:
        """It will not run."""
        if self._entries.pop(entry.waiting, None) is None:
            return
        lobby = self._lobbies.get(entry.waiting.key)
        if lobby and entry in lobby.entries:
            lobby.entries.remove(entry)
        else:
            self._queue.leave(entry.waiting)
        saved("queue", entry.waiting.seconds)
        entry.use.close()

    def _compute(self, launch: _Launch, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread."""
        begin = time.monotonic()
        with stopping(launch.stop):
            outcomes = _outcomes(launch)
        seconds = time.monotonic() - begin
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._finish, launch, outcomes, seconds)

    def _finish(self, launch: _Launch, outcomes: Sequence[Outcome], seconds: float) -> None:
        """In the loop: who waits for it gets what the work returned or raised."""
        if launch.is_over:
            return
        launch.is_over = True
        self._running.discard(launch)
        self._abandoned -= launch.is_abandoned
        self._free += not launch.is_abandoned
        if any(isinstance(error, Cancelled) for _, error in outcomes):
            saved("running" if launch.has_begun else "queue", launch.seconds - seconds)
        for entry, (result, error) in zip(launch.entries, outcomes, strict=True):
            entry.launch = None  # each refers to the other, and to the result
            entry.use.close()
            _settle(entry.done, result, error)
        if not self._running:
            for key in list(self._lobbies):
                self._admit(key)
        self._dispatch()


def saved(where: str, seconds: float) -> None:
    """Counts computing that was not done, by its estimate, since nobody waited for it any more."""
    metrics.SAVED_SECONDS.labels(where).inc(max(0.0, seconds))


def _settle(done: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
    """Who waits for it gets what work returned or raised."""
    if done.done():  # its caller has left
        if error is not None:
            drop_tracebacks(error)
    elif error is None:
        done.set_result(result)
    else:
        done.set_exception(error)


def _outcomes(launch: _Launch) -> list[Outcome]:
    """Of each work. Those are taken out of their entries: what they raise refers to the frames of this thread, and
    these to what they hold.
    """
    if launch.stop.is_set:
        return [(None, Cancelled()) for _ in launch.entries]
    now = time.monotonic()
    launch.has_begun = True
    outcomes = [_late(launch, entry) if entry.waiting.demand.deadline <= now else None for entry in launch.entries]
    works = [entry.work for entry, late in zip(launch.entries, outcomes, strict=True) if late is None]
    for entry in launch.entries:
        entry.work = _nothing
    found = iter(_ran(works) if works else [])
    return [late or next(found) for late in outcomes]


def _late(launch: _Launch, entry: _Entry) -> Outcome:
    launch.seconds -= entry.waiting.seconds
    saved("queue", entry.waiting.seconds)
    return None, TimeoutError("its deadline had passed before it could begin")


def _ran(works: list[Any]) -> list[Outcome]:
    """What they return or raise, the only one or all together. None of them is kept."""
    count = len(works)
    if count == 1:
        return [outcome_of(works.pop())]
    outcomes, error = outcome_of(partial(works[0].together, works))
    works.clear()
    return [(None, error)] * count if error is not None else cast("list[Outcome]", outcomes)


def _nothing() -> None:
    """In the place of work that was taken."""
