"""Threads that share the blocks of one large sum: NumPy lets go of Python's lock while it copies and multiplies."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from threading import Lock
from typing import TypeVar

import numpy as np

from convolver.core import environment
from convolver.core.cancellation import Stop, checked, current, stopping

Block = TypeVar("Block")


class Crew:
    """At most `size` threads that compute large sums at one time, the callers among them: who comes while others
    compute has fewer helpers, or none, and nobody waits for one.
    """

    def __init__(self, size: int) -> None:
        self.size, self._busy, self._lock = size, 0, Lock()
        self._pool = ThreadPoolExecutor(max(1, size - 1), thread_name_prefix="sums")

    def share(self, blocks: Iterable[Block], work: Callable[[Iterator[Block]], None]) -> None:
        """Calls `work` in several threads, this one among them; its iterator gives each block to one of them, after a
        checkpoint of the caller's Stop.
        """
        listed = list(blocks)
        rest = iter(listed)  # a list's may be shared: Python's lock gives each element once
        with self._helpers(len(listed) - 1) as helpers:
            calls = [self._called(work, rest) for _ in range(helpers)]
            try:
                work(checked(rest))
            finally:
                _ended(calls)

    def _called(self, work: Callable[[Iterator[Block]], None], rest: Iterator[Block]) -> Future[None]:
        call = Future[None]()
        with suppress(RuntimeError):  # no thread to be had: it stays in the queue, where `_ended` cancels it
            self._pool.submit(_help, [call], work, rest, current())
        return call

    @contextmanager
    def _helpers(self, most: int) -> Iterator[int]:
        """How many, of `most`, the caller has; all of them count as busy meanwhile."""
        with self._lock:
            helpers = max(0, min(most, self.size - self._busy - 1))
            self._busy += 1 + helpers
        try:
            yield helpers
        finally:
            with self._lock:
                self._busy -= 1 + helpers


def shared(threads: int, blocks: Iterable[Block], work: Callable[[Iterator[Block]], None]) -> None:
    """Calls `work` in up to `threads` threads, this one among them; its iterator gives each block to one of them, after
    a checkpoint of the caller's Stop.
    """
    if threads > 1:
        crew(threads).share(blocks, work)
    else:
        work(checked(blocks))


@cache
def crew(threads: int) -> Crew:
    """This process's, of one thread where NumPy's matrix products have threads of their own."""
    return Crew(threads if environment.numpy_has_one_thread() else 1)


os.register_at_fork(after_in_child=crew.cache_clear)  # a child has none of its parent's threads


def _help(
    calls: list[Future[None]], work: Callable[[Iterator[Block]], None], blocks: Iterator[Block], stop: Stop | None
) -> None:
    """In a helper: takes blocks, unless all of them are done and the only call is cancelled."""
    call = calls.pop()  # the pool's frame, which an error's traceback holds, has the list
    if not call.set_running_or_notify_cancel():
        return
    try:
        with np.errstate(all="ignore"), stopping(stop):  # NumPy keeps its own for each thread too
            work(checked(blocks))
    except BaseException as error:  # noqa: BLE001  # it is raised in the caller
        call.set_exception(error)
        del call  # else it, the error and this frame would hold one another
    else:
        call.set_result(None)


def _ended(calls: list[Future[None]]) -> None:
    """Waits for all that have begun; raises what one of them raised, and forgets it: it holds these frames, and theirs
    the arrays.
    """
    error = next(filter(None, [call.exception() for call in calls if not call.cancel()]), None)
    calls.clear()
    try:
        if error:
            raise error
    finally:
        del error
