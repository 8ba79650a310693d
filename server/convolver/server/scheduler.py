"""Runs accepted work on threads, within a budget of bytes, in the order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from convolver.server import metrics

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class Scheduler:
    """Work waits until its bytes fit beside those in flight, then for a thread. It belongs to one event loop.

    A caller that is cancelled (its deadline passed, it hung up) takes its work out of the queue; what runs already runs
    on, and gives its bytes back when it is done.
    """

    def __init__(self, threads: int, memory_budget: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="compute")
        self._budget = memory_budget
        self._held = 0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._in_flight = 0

    async def run(self, held_bytes: int, work: Callable[[], Result]) -> Result:
        """What `work` returns, called in a thread while `held_bytes` (at most the budget) are held."""
        self._count(1)
        try:
            await self._admitted(held_bytes)
        except BaseException:
            self._count(-1)
            raise
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Result] = loop.create_future()

        def call() -> None:
            outcome = _outcome(work)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._finish, done, outcome, held_bytes)

        try:
            submitted = self._threads.submit(call)
        except RuntimeError:  # no thread to be had
            self._release(held_bytes)
            raise
        submitted.add_done_callback(lambda job: done.cancel() if job.cancelled() else None)  # by `close`, in the loop
        try:
            return await done
        except asyncio.CancelledError:
            if submitted.cancel():  # it had not begun
                self._release(held_bytes)
            raise

    def has_room(self, held_bytes: int) -> bool:
        """Whether work of so many bytes would not have to wait for others."""
        return not self._queue and self._held + held_bytes <= self._budget

    def run_here(self, held_bytes: int, work: Callable[[], Result]) -> Result:
        """What `work` returns, called at once, in the loop's own thread; for what takes less than going elsewhere."""
        self._count(1)
        self._hold(held_bytes)
        try:
            return work()
        finally:
            self._release(held_bytes)

    def close(self) -> None:
        """Forgets what waits for a thread, and ends each thread when it has finished what it runs."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> bool:
        """Whether work waits or runs, be it that its caller has left."""
        return self._in_flight > 0

    async def _admitted(self, held_bytes: int) -> None:
        if self._queue or self._held + held_bytes > self._budget:
            turn = asyncio.get_running_loop().create_future()
            self._queue.append((held_bytes, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it was granted in the same moment
                    self._hold(-held_bytes)
                self._admit()
                raise
        else:
            self._hold(held_bytes)

    def _finish(
        self, done: asyncio.Future[Result], outcome: tuple[Result, None] | tuple[None, BaseException], held_bytes: int
    ) -> None:
        """One wake-up of the loop for both: the bytes are free, and who waits for the result gets it."""
        self._release(held_bytes)
        if done.done():  # its caller has left
            return
        result, error = outcome
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # mypy does not narrow unpacked pairs
        else:
            done.set_exception(error)

    def _release(self, held_bytes: int) -> None:
        self._hold(-held_bytes)
        self._count(-1)
        self._admit()

    def _admit(self) -> None:
        """Grants turns from the head of the queue; those whose caller has left are dropped when they come there."""
        while self._queue:
            held_bytes, turn = self._queue[0]
            if not turn.cancelled():
                if self._held + held_bytes > self._budget:
                    return
                self._hold(held_bytes)
                turn.set_result(None)
            self._queue.popleft()

    def _hold(self, held_bytes: int) -> None:
        self._held += held_bytes
        metrics.MEMORY_BYTES.set(self._held)

    def _count(self, change: int) -> None:
        self._in_flight += change
        metrics.IN_FLIGHT.set(self._in_flight)


def _outcome(work: Callable[[], Result]) -> tuple[Result, None] | tuple[None, BaseException]:
    """What the work returns, or raises."""
    try:
        return work(), None
    except BaseException as error:  # noqa: BLE001  # it is raised where the work is waited for
        return None, error
