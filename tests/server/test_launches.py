"""What compute threads do for whom: late and cancelled work is not done, and slots are neither lost nor won."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.server.test_errors import failure_of
from tests.server.test_scheduler import THREADS, Work, cancel, held_bytes, in_flight, with_scheduler
from tests.wait import until_in_loop

from convolver.core.cancellation import checkpoint
from convolver.server.demand import Demand
from convolver.server.fair_queue import Waiting
from convolver.server.launches import Launches
from convolver.server.metrics import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from convolver.server.outcomes import Outcome
    from convolver.server.scheduler import Scheduler


def launched() -> int:
    """How many pieces of work have had their turn."""
    return int(REGISTRY.get_sample_value("convolver_queue_seconds_count") or 0)


def saved(where: str) -> float:
    return REGISTRY.get_sample_value("convolver_saved_seconds_total", {"where": where}) or 0.0


def start(scheduler: Scheduler, work: Callable[[], int], seconds: float = 0.0) -> asyncio.Task[int]:
    return asyncio.create_task(scheduler.run(Demand(1, seconds), work))


async def started(scheduler: Scheduler, count: int) -> tuple[list[Work], list[asyncio.Task[int]]]:
    """So many that run until they are let go."""
    works = [Work(number) for number in range(count)]
    tasks = [start(scheduler, work) for work in works]
    for work in works:
        await work.has_started()
    return works, tasks


def let_go(works: Sequence[Work]) -> None:
    for work in works:
        work.let_go.set()


async def has_all_its_slots(scheduler: Scheduler) -> None:
    """As many run at a time as there are threads, and not one more."""
    before, others = launched(), in_flight()
    works = [Work(number) for number in range(THREADS + 2)]
    tasks = [start(scheduler, work) for work in works]
    for work in works[:THREADS]:
        await work.has_started()
    assert (launched() - before, in_flight() - others) == (THREADS, len(works))
    let_go(works)
    assert await asyncio.gather(*tasks) == [*range(len(works))]


@with_scheduler
async def test_work_whose_deadline_has_passed_is_not_begun(scheduler: Scheduler) -> None:
    before, work = saved("queue"), Work()
    passed = Demand(1, 2.0, deadline=asyncio.get_running_loop().time())
    with pytest.raises(TimeoutError, match="deadline"):
        await scheduler.run(passed, work)
    assert (work.started.is_set(), saved("queue") - before) == (False, 2.0)
    await has_all_its_slots(scheduler)


def test_which_its_caller_is_told_as_what_it_is() -> None:
    failure = failure_of(TimeoutError("its deadline had passed before it could begin"))
    assert (failure.code(), failure.details()) == (
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "its deadline had passed before it could begin",
    )


@with_scheduler
async def test_cancelled_work_that_waits_for_a_thread_is_not_begun(scheduler: Scheduler) -> None:
    works, tasks = await started(scheduler, THREADS)
    before, late = saved("queue"), Work()
    waiting = start(scheduler, late, 2.0)
    await until_in_loop(lambda: held_bytes() == THREADS + 1, "its admission")
    await cancel(waiting)
    assert (saved("queue") - before, held_bytes()) == (2.0, THREADS)
    let_go(works)
    await asyncio.gather(*tasks)
    assert not late.started.is_set()
    await has_all_its_slots(scheduler)


class Endless(Work):
    """It ends at a checkpoint alone."""

    def __call__(self) -> int:
        self.started.set()
        while True:
            checkpoint()


@with_scheduler
async def test_cancelled_work_that_runs_is_stopped(scheduler: Scheduler) -> None:
    before, works = saved("running"), [Endless() for _ in range(THREADS)]
    tasks = [start(scheduler, work, 5.0) for work in works]
    for work in works:
        await work.has_started()
    await cancel(*tasks)
    await until_in_loop(lambda: in_flight() == 0, "them to stop")
    assert 0 < saved("running") - before < 10.0
    await has_all_its_slots(scheduler)


@with_scheduler
async def test_what_does_not_stop_frees_its_slot_for_others(scheduler: Scheduler) -> None:
    for _ in range(2):  # once those have ended it does so for others
        stuck, abandoned = await started(scheduler, THREADS)
        await cancel(*abandoned)
        await has_all_its_slots(scheduler)
        let_go(stuck)
        await until_in_loop(lambda: in_flight() == 0, "them to end")
        await has_all_its_slots(scheduler)


@with_scheduler
async def test_as_many_of_these_as_there_are_threads(scheduler: Scheduler) -> None:
    stuck, abandoned = await started(scheduler, THREADS)
    await cancel(*abandoned)
    more, left = await started(scheduler, THREADS)
    await cancel(*left)
    before, following = launched(), Work(7)
    waiting = start(scheduler, following)
    await until_in_loop(lambda: in_flight() == 2 * THREADS + 1, "its admission")
    assert launched() == before
    let_go(more[:1])
    following.let_go.set()
    assert await waiting == 7
    let_go([*stuck, *more])
    await until_in_loop(lambda: in_flight() == 0, "all to end")
    await has_all_its_slots(scheduler)


class Cancels:
    """What is held by work whose caller leaves in the moment in which it ends."""

    def __init__(self) -> None:
        self.task: asyncio.Task[object] | None = None
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        if self.task:
            self.task.cancel()


@pytest.mark.parametrize("times", [1, 3 * THREADS])
def test_who_leaves_as_the_work_ends_takes_no_slot_along(times: int) -> None:
    async def test() -> None:
        launches = Launches(THREADS, 1, 0.0)
        for _ in range(times):
            use = Cancels()
            use.task = asyncio.create_task(launches.run(int, Waiting(Demand(1), 0.0), use))
            await asyncio.wait([use.task])
            assert (use.task.cancelled(), use.closed) == (True, 1)
        before, works = launched(), [Work(number) for number in range(THREADS + 1)]
        tasks = [asyncio.create_task(launches.run(work, Waiting(Demand(1), 0.0), Cancels())) for work in works]
        for work in works[:THREADS]:
            await work.has_started()
        assert launched() - before == THREADS
        let_go(works)
        assert await asyncio.gather(*tasks) == [*range(THREADS + 1)]
        launches.close()

    asyncio.run(test())


@pytest.mark.parametrize("has_another", [False, True], ids=["the first", "the second"])
def test_a_thread_that_cannot_be_had_is_an_error_and_costs_no_slot(
    monkeypatch: pytest.MonkeyPatch, *, has_another: bool
) -> None:
    """Python's pool keeps such work for its other threads, and then takes one idle thread for two."""

    def fails(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    @with_scheduler
    async def test(scheduler: Scheduler) -> None:
        works, tasks = await started(scheduler, int(has_another))
        unhappy = Work()
        with monkeypatch.context() as patch:
            patch.setattr("concurrent.futures.thread.threading.Thread.start", fails)
            with pytest.raises(RuntimeError, match="can't start"):
                await start(scheduler, unhappy)
        assert held_bytes() == len(works)
        let_go(works)
        await asyncio.gather(*tasks)
        await has_all_its_slots(scheduler)
        assert not unhappy.started.is_set()

    test()


class Alike(Work):
    """What may run together, and cannot."""

    key = "k"

    def together(self, works: Sequence[Alike]) -> list[Outcome]:
        raise ValueError(f"{len(works)} together")


@with_scheduler
async def test_what_fails_together_fails_for_each_and_costs_no_slot(scheduler: Scheduler) -> None:
    works, tasks = await started(scheduler, THREADS)
    alike = [start(scheduler, Alike()) for _ in range(3)]
    await until_in_loop(lambda: in_flight() == THREADS + 3, "their admission")
    let_go(works)
    await asyncio.gather(*tasks)
    assert [str(error) for error in await asyncio.gather(*alike, return_exceptions=True)] == ["3 together"] * 3
    await has_all_its_slots(scheduler)


def test_closing_forgets_what_waits_for_company() -> None:
    async def test() -> None:
        launches, uses = Launches(1, 2, 1000.0), [Cancels(), Cancels()]
        work, late = Work(5), Alike()
        running = asyncio.create_task(launches.run(work, Waiting(Demand(1), 0.0), uses[0]))
        await work.has_started()
        waiting = asyncio.create_task(launches.run(late, Waiting(Demand(1), 0.0), uses[1]))
        await asyncio.sleep(0)  # one turn of the loop, in which it begins to wait
        launches.close()
        await asyncio.wait([waiting])
        work.let_go.set()
        assert await running == 5
        assert (waiting.cancelled(), late.started.is_set(), [use.closed for use in uses]) == (True, False, [1, 1])

    asyncio.run(test())
