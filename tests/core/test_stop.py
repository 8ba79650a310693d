"""A Stop: whose it is, and what threads that share a sum make of it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.core.operations import Array
from tests.core.test_cancellation import Counting
from tests.wait import until

from convolver.core.backends.threads import Crew
from convolver.core.cancellation import Cancelled, Stop, checked, checkpoint, current, stopping

WAIT = 30.0
THREADS = 3


def test_a_shared_sum_that_was_cancelled_holds_no_memory_and_no_thread() -> None:
    gone = list[weakref.ref[Array]]()

    def work(blocks: Iterator[int]) -> None:
        mine = np.empty(1000)
        gone.append(weakref.ref(mine))
        for _ in blocks:
            meeting.wait(WAIT)

    several = Crew(THREADS)
    gc.disable()
    try:
        for _ in range(20):
            meeting, stop = threading.Barrier(THREADS), Counting(THREADS + 1)
            with pytest.raises(Cancelled), stopping(stop):
                several.share(range(100), work)
            until(lambda: all(alive() is None for alive in gone), "the arrays of all threads to be freed")
    finally:
        gc.enable()
    meeting = threading.Barrier(THREADS)
    several.share(range(THREADS), work)


def test_helpers_forget_whose_stop_it_was() -> None:
    several, seen, meeting = Crew(2), set[Stop | None](), threading.Barrier(2)

    def look(blocks: Iterator[int]) -> None:
        for _ in blocks:
            meeting.wait(WAIT)
            seen.add(current())

    stop = Stop()
    with stopping(stop):
        several.share(range(2), look)
    assert seen == {stop}
    stop.set()
    seen.clear()
    several.share(range(2), look)
    assert seen == {None}


def test_a_stop_is_its_threads_alone() -> None:
    stop = Stop()
    stop.set()
    with stopping(stop), ThreadPoolExecutor(1) as other:
        other.submit(checkpoint).result(WAIT)
        with pytest.raises(Cancelled):
            checkpoint()


def test_within_another_stop_the_inner_one_counts_and_the_outer_one_comes_back() -> None:
    outer, inner = Stop(), Stop()
    outer.set()
    with stopping(outer):
        with stopping(inner):
            checkpoint()
        with stopping(None):
            checkpoint()
        with pytest.raises(KeyError), stopping(inner):
            raise KeyError
        assert current() is outer
    assert current() is None


def test_another_thread_stops_the_one_that_computes() -> None:
    stop, begun = Stop(), threading.Event()

    def endless() -> Iterator[None]:
        while True:
            begun.set()
            yield

    def compute() -> None:
        with stopping(stop):
            for _ in checked(endless()):
                pass

    with ThreadPoolExecutor(1) as other:
        computing = other.submit(compute)
        assert begun.wait(WAIT)
        assert not computing.done()
        stop.set()
        assert isinstance(computing.exception(WAIT), Cancelled)


def test_items_that_would_travel_to_a_device_are_not_sent_any_more() -> None:
    torch_cuda = pytest.importorskip("convolver.core.backends.torch_cuda", reason="no torch")
    stop = Stop()
    stop.set()
    nobody: Any = None
    with pytest.raises(Cancelled), stopping(stop):
        torch_cuda.overlapped(nobody, [nobody])
