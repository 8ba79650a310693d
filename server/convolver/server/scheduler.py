"""Runs accepted work on threads, within a budget of bytes, in the order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from traceback import clear_frames
from typing import TYPE_CHECKING, TypeVar

from convolver.server import metrics

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

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
        lease = await self.admitted(held_bytes)
        try:
            return await lease.run(work)
        finally:
            lease.close()

    async def admitted(self, held_bytes: int) -> Lease:
        """Waits until so many bytes (at most the budget) fit, and holds them until the lease is closed."""
        self._count(1)
        try:
            await self._admitted(held_bytes)
        except BaseException:
            self._count(-1)
            raise
        return Lease(self._threads, lambda: self._release(held_bytes))

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


class Lease:
    """Bytes that are held for a request: until it is closed, and longer while work that it began still runs."""

    def __init__(self, threads: ThreadPoolExecutor, release: Callable[[], None]) -> None:
        self._threads, self._release = threads, release
        self._uses = 1

    async def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, called in a thread when there is one."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        submitted = self._threads.submit(self._call, [work], done)
        self._uses += 1
        submitted.add_done_callback(partial(_cancelled, done))  # by `close`, in the loop
        try:
            return await done
        except asyncio.CancelledError:
            if submitted.cancel():  # it had not begun
                self.close()
            raise
        finally:
            del done, submitted  # else this frame and what was raised would hold each other

    def close(self) -> None:
        """One use less, the request's own or that of work of its; the last one gives the bytes back."""
        self._uses -= 1
        if not self._uses:
            self._release()

    def _call(self, works: list[Callable[[], Result]], done: asyncio.Future[Result]) -> None:
        """In the thread. The work is taken out of its list: what it raises refers to the frames of this thread, and
        those to the arguments.
        """
        outcome = _outcome(works)
        with suppress(RuntimeError):  # the loop has ended
            done.get_loop().call_soon_threadsafe(self._finish, done, outcome)

    def _finish(self, done: asyncio.Future[Result], outcome: tuple[Result, None] | tuple[None, BaseException]) -> None:
        """In the loop: the work is done, and who waits for it gets what it returned or raised."""
        self.close()
        result, error = outcome
        if done.done():  # its caller has left
            if error is not None:
                drop_tracebacks(error)
        elif error is None:
            done.set_result(result)  # type: ignore[arg-type]  # mypy does not narrow unpacked pairs
        else:
            done.set_exception(error)


def forget(error: BaseException) -> None:
    """Lets go of what the frames hold that an error has passed, which may be tensors: it refers to them, they often to
    it, and a collection may be long in coming.
    """
    passed: BaseException | None = error
    while passed:
        clear_frames(passed.__traceback__)
        passed = passed.__context__


def drop_tracebacks(error: BaseException) -> None:
    """Lets go of the frames themselves that an error has passed, once nobody wants to know where it came from: though
    they be cleared, each has the function that it ran, and that has its closure.
    """
    passed: BaseException | None = error
    while passed:
        passed.__traceback__ = None
        passed = passed.__context__


def _outcome(works: list[Callable[[], Result]]) -> tuple[Result, None] | tuple[None, BaseException]:
    """What the work returns, or raises."""
    try:
        return works.pop()(), None
    except BaseException as error:  # noqa: BLE001  # it is raised where the work is waited for
        forget(error)
        return None, error


def _cancelled(waiting: asyncio.Future[Result], submitted: Future[None]) -> None:
    if submitted.cancelled():
        waiting.cancel()
