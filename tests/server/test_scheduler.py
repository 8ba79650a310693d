"""Admission within a budget of bytes, in the order of arrival, on real threads; and nothing is held for ever."""

from __future__ import annotations

import asyncio
import random
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.wait import DEADLINE, until_in_loop

from convolver.server.demand import Demand
from convolver.server.metrics import REGISTRY
from convolver.server.scheduler import Scheduler

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

BUDGET = 10
THREADS = 2


def held_bytes() -> int:
    return int(REGISTRY.get_sample_value("convolver_memory_bytes") or 0)


def in_flight() -> int:
    return int(REGISTRY.get_sample_value("convolver_in_flight") or 0)


class Work:
    """Work that returns its number, or raises, once it is let go."""

    def __init__(self, number: int = 0, error: Exception | None = None) -> None:
        self.number, self.error = number, error
        self.started, self.let_go = threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.started.set()
        assert self.let_go.wait(DEADLINE)
        if self.error is not None:
            raise self.error
        return self.number

    async def has_started(self) -> None:
        assert await asyncio.to_thread(self.started.wait, DEADLINE)


def with_scheduler(test: Callable[[Scheduler], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """The test in an event loop of its own. After it nothing is held and the threads end."""

    async def whole() -> None:
        scheduler = Scheduler(THREADS, BUDGET)
        try:
            await asyncio.wait_for(test(scheduler), DEADLINE)
            await until_in_loop(lambda: not scheduler.busy, "all work to end")
            assert (held_bytes(), in_flight()) == (0, 0)
        finally:
            scheduler.close()

    def run() -> None:
        asyncio.run(whole())
        for thread in threading.enumerate():
            if thread.name.startswith("compute"):
                thread.join(DEADLINE)
                assert not thread.is_alive()

    return run


def start(scheduler: Scheduler, size: int, work: Work) -> asyncio.Task[int]:
    return asyncio.create_task(scheduler.run(Demand(size), work))


async def cancel(*tasks: asyncio.Task[int]) -> None:
    """Cancels all in one moment; each ends as cancelled, not as anything else."""
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * len(tasks)


@with_scheduler
async def test_work_runs_in_a_thread_and_its_result_comes_back(scheduler: Scheduler) -> None:
    assert await scheduler.run(Demand(1), threading.current_thread) is not threading.main_thread()


@with_scheduler
async def test_an_exception_of_the_work_is_the_callers(scheduler: Scheduler) -> None:
    work = Work(error=ValueError("mine"))
    work.let_go.set()
    with pytest.raises(ValueError, match="mine"):
        await scheduler.run(Demand(BUDGET), work)
    await until_in_loop(lambda: held_bytes() == 0, "the bytes to be given back")


@with_scheduler
async def test_what_does_not_fit_beside_the_rest_waits(scheduler: Scheduler) -> None:
    first, second = Work(1), Work(2)
    tasks = [start(scheduler, 6, first), start(scheduler, 6, second)]
    await first.has_started()
    assert (held_bytes(), in_flight(), second.started.is_set()) == (6, 2, False)
    second.let_go.set()
    first.let_go.set()
    assert await asyncio.gather(*tasks) == [1, 2]


@with_scheduler
async def test_what_fits_beside_the_rest_runs_beside_it(scheduler: Scheduler) -> None:
    works = [Work(), Work()]
    tasks = [start(scheduler, 5, work) for work in works]
    for work in works:
        await work.has_started()
    assert held_bytes() == BUDGET
    for work in works:
        work.let_go.set()
    await asyncio.gather(*tasks)


@with_scheduler
async def test_a_small_one_does_not_overtake_a_large_one_that_waits(scheduler: Scheduler) -> None:
    first, large, small = Work(), Work(), Work()
    tasks = [start(scheduler, 5, first), start(scheduler, 10, large), start(scheduler, 1, small)]
    await first.has_started()
    assert held_bytes() == 5
    first.let_go.set()
    await large.has_started()
    assert (held_bytes(), small.started.is_set()) == (10, False)
    large.let_go.set()
    small.let_go.set()
    await asyncio.gather(*tasks)


@with_scheduler
async def test_what_waits_is_begun_in_the_order_of_arrival(scheduler: Scheduler) -> None:
    begun: list[int] = []
    first = Work()
    task = start(scheduler, BUDGET, first)
    await first.has_started()
    waiting = [
        asyncio.create_task(scheduler.run(Demand(BUDGET), partial(begun.append, number))) for number in range(20)
    ]
    await asyncio.sleep(0)  # one turn of the loop, in which all of them join the queue
    first.let_go.set()
    await asyncio.gather(task, *waiting)
    assert begun == list(range(20))


@with_scheduler
async def test_a_caller_that_leaves_the_queue_makes_room_for_the_next(scheduler: Scheduler) -> None:
    first, large, small = Work(), Work(), Work(3)
    tasks = [start(scheduler, 5, first), start(scheduler, 10, large), start(scheduler, 5, small)]
    await first.has_started()
    await cancel(tasks[1])
    await small.has_started()
    assert (held_bytes(), in_flight(), large.started.is_set()) == (10, 2, False)
    first.let_go.set()
    small.let_go.set()
    assert await tasks[2] == 3


@with_scheduler
async def test_callers_that_leave_the_queue_in_one_moment_all_end_as_cancelled(scheduler: Scheduler) -> None:
    first = Work()
    running = start(scheduler, 5, first)
    await first.has_started()
    waiting = [start(scheduler, size, Work()) for size in (10, 1, 10, 1, 1)]
    await asyncio.sleep(0)  # one turn of the loop, in which all of them join the queue
    await cancel(*waiting)
    assert (held_bytes(), in_flight()) == (5, 1)
    first.let_go.set()
    await running


@with_scheduler
async def test_a_caller_that_leaves_as_its_turn_comes_gives_its_bytes_back(scheduler: Scheduler) -> None:
    first, large, next_in_line = Work(), Work(), Work()
    tasks = [start(scheduler, 5, first), start(scheduler, 10, large), start(scheduler, 5, next_in_line)]
    await first.has_started()
    tasks[1].cancel()
    await asyncio.sleep(0)  # one turn of the loop: the next in line has its turn, and does not know it yet
    assert held_bytes() == 10
    await cancel(tasks[2])
    assert (held_bytes(), next_in_line.started.is_set()) == (5, False)
    first.let_go.set()
    await tasks[0]


@with_scheduler
async def test_a_caller_that_leaves_before_a_thread_is_free_frees_its_bytes_and_is_not_computed(
    scheduler: Scheduler,
) -> None:
    running = [Work() for _ in range(THREADS)]
    tasks = [start(scheduler, 1, work) for work in running]
    for work in running:
        await work.has_started()
    late = Work()
    waiting = start(scheduler, 5, late)
    await until_in_loop(lambda: held_bytes() == 7, "the admission of the third")
    await cancel(waiting)
    await until_in_loop(lambda: (held_bytes(), in_flight()) == (2, 2), "its bytes to be given back")
    for work in running:
        work.let_go.set()
    await asyncio.gather(*tasks)
    assert not late.started.is_set()


@with_scheduler
async def test_work_whose_caller_has_left_holds_its_bytes_until_it_ends(scheduler: Scheduler) -> None:
    work, following = Work(), Work(2)
    left = start(scheduler, BUDGET, work)
    await work.has_started()
    waiting = start(scheduler, 1, following)
    await cancel(left)
    assert (held_bytes(), in_flight(), scheduler.busy) == (BUDGET, 2, True)
    assert not following.started.is_set()
    following.let_go.set()
    work.let_go.set()
    assert await waiting == 2


@with_scheduler
async def test_closing_forgets_what_waits_for_a_thread(scheduler: Scheduler) -> None:
    running = [Work() for _ in range(THREADS)]
    tasks = [start(scheduler, 1, work) for work in running]
    for work in running:
        await work.has_started()
    late = Work()
    waiting = start(scheduler, 1, late)
    await until_in_loop(lambda: held_bytes() == 3, "the admission of the third")
    scheduler.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for work in running:
        work.let_go.set()
    await asyncio.gather(*tasks)
    assert not late.started.is_set()


@with_scheduler
async def test_after_closing_work_is_refused_and_holds_nothing(scheduler: Scheduler) -> None:
    scheduler.close()
    with pytest.raises(RuntimeError):
        await scheduler.run(Demand(5), Work())


class Schedule:
    """Calls that come, leave and end in a random order; at each moment what runs fits the budget."""

    def __init__(self, scheduler: Scheduler, seed: int) -> None:
        self.scheduler, self.random = scheduler, random.Random(seed)
        self.works: list[Work] = []
        self.tasks: list[asyncio.Task[int]] = []
        self.lock, self.running, self.most = threading.Lock(), 0, 0

    def come(self) -> None:
        work, size = Work(len(self.works)), self.random.randint(1, BUDGET)
        self.works.append(work)
        self.tasks.append(asyncio.create_task(self.scheduler.run(Demand(size), lambda: self._counted(size, work))))

    def leave(self) -> None:
        self.random.choice(self.tasks).cancel()

    def let_go(self) -> None:
        self.random.choice(self.works).let_go.set()

    def _counted(self, size: int, work: Work) -> int:
        self._change(size)
        try:
            return work()
        finally:
            self._change(-size)

    def _change(self, size: int) -> None:
        with self.lock:
            self.running += size
            self.most = max(self.most, self.running)

    async def play(self) -> None:
        self.come()
        for _ in range(40):
            self.random.choice([self.come, self.leave, self.let_go, self.let_go])()
            for _ in range(self.random.choice([0, 0, 1, 2, 5])):
                await asyncio.sleep(0)
            assert 0 <= held_bytes() <= BUDGET
        for work in self.works:
            work.let_go.set()
        for number, end in enumerate(await asyncio.gather(*self.tasks, return_exceptions=True)):
            assert end == number or isinstance(end, asyncio.CancelledError), end
        assert self.most <= BUDGET


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 300, 50)], ids=str)
def test_no_order_of_events_leaks_bytes_or_exceeds_the_budget(seeds: range) -> None:
    for seed in seeds:
        with_scheduler(lambda scheduler, seed=seed: Schedule(scheduler, seed).play())()  # type: ignore[misc]  # its second is its own
