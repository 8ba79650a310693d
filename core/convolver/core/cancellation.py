"""Cancellation of what a thread computes: who waits for it sets a Stop.

The thread looks for that between blocks, tiles, items, layers and gradients, and raises Cancelled:

    stop = Stop()
    with stopping(stop):                # in the thread that computes
        backend.run(plan, prepared, x)  # raises Cancelled soon after any other thread called stop.set()

A single call of a library is not interrupted: one product of NumPy, one convolution of torch (on the CPU and on CUDA)
or one of its Fourier transforms runs to its end. What torch runs as one launch is therefore looked after just before
it alone. Nor is the preparing of weights, whose result may be for others too. A back end that was cancelled can be used
at once; an array given as `out` may have been written to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Cancelled(Exception):
    """The Stop of this thread was set."""


class Stop:
    """A flag that any thread may set, for good, and any number of threads may look at."""

    __slots__ = ("_set",)

    def __init__(self) -> None:
        self._set = False

    @property
    def is_set(self) -> bool:
        """Whether `set` was called."""
        return self._set

    def set(self) -> None:
        """From now on every checkpoint of a thread that has this Stop raises Cancelled."""
        self._set = True


class _Thread(threading.local):
    stop: Stop | None = None


_THREAD = _Thread()


@contextmanager
def stopping(stop: Stop | None) -> Iterator[None]:
    """Makes it the calling thread's, in place of the one that it has; None is for what is not to be stopped."""
    before, _THREAD.stop = _THREAD.stop, stop
    try:
        yield
    finally:
        _THREAD.stop = before


def current() -> Stop | None:
    """The calling thread's: for who hands work to another thread."""
    return _THREAD.stop


def checkpoint() -> None:
    """Raises Cancelled where the calling thread's Stop is set."""
    stop = _THREAD.stop
    if stop is not None and stop.is_set:
        raise Cancelled


def checked(items: Iterable[T]) -> Iterator[T]:
    """Each of them after a checkpoint; the thread that takes one is the one that counts."""
    for item in items:
        checkpoint()
        yield item
