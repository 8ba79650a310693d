"""What is admitted and what is refused: by bytes, by the work that waits, and by deadlines."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.test_scheduler import BUDGET, THREADS, Work, held_bytes, in_flight, with_scheduler
from tests.wait import until_in_loop

from convolver.core.errors import Overloaded
from convolver.server.demand import Backlog, Demand
from convolver.server.metrics import REGISTRY
from convolver.server.scheduler import LONGEST_RETRY, SHORTEST_RETRY

if TYPE_CHECKING:
    from convolver.server.scheduler import Lease, Scheduler

BOUND = 10.0
"""Seconds that may wait, by default."""


def backlog() -> float:
    return REGISTRY.get_sample_value("convolver_backlog_seconds") or 0.0


def saved(where: str) -> float:
    return REGISTRY.get_sample_value("convolver_saved_seconds_total", {"where": where}) or 0.0


async def admitted(scheduler: Scheduler, *demands: Demand) -> list[Lease]:
    return [await scheduler.admitted(demand) for demand in demands]


def close(*leases: Lease) -> None:
    for lease in leases:
        lease.close()
    assert backlog() == 0.0


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("above", "retry"), [(0.5, 1.5), (0.01, 1.01), (1000.0, LONGEST_RETRY)], ids=["some", "little", "much"]
)
def test_more_work_than_the_queue_may_have_is_refused_until_a_tenth_is_done(above: float, retry: float) -> None:
    @with_scheduler
    async def test(scheduler: Scheduler) -> None:
        leases = await admitted(scheduler, Demand(1, THREADS * (BOUND + above)))
        with pytest.raises(
            Overloaded, match=rf"{BOUND + above:.2f} s of work .* {BOUND} s \(--queue-seconds\)"
        ) as caught:
            await scheduler.admitted(Demand(1, 0.1))
        assert caught.value.retry_after == pytest.approx(retry)
        assert (held_bytes(), in_flight()) == (1, 1)
        close(*leases)

    test()


@with_scheduler
async def test_what_waits_up_to_the_bound_is_admitted(scheduler: Scheduler) -> None:
    close(*await admitted(scheduler, Demand(1, THREADS * BOUND), Demand(1, 5.0)))


@with_scheduler
async def test_a_light_caller_is_admitted_while_a_heavy_one_is_refused(scheduler: Scheduler) -> None:
    leases = await admitted(scheduler, Demand(1, 1000.0, "heavy"))
    with pytest.raises(Overloaded):
        await scheduler.admitted(Demand(1, 0.1, "heavy"))
    close(*leases, *await admitted(scheduler, Demand(1, 1.0, "light")))


@pytest.mark.parametrize(
    ("asks", "before"),
    [
        (Demand(1, 1.0, "new"), 2 * 1.0 + 3.0 / 8),
        (Demand(1, 3.0, "new"), 2.0 + 3.0 + 8.0 / 8),
        (Demand(1, 1.0, "a"), 2.0 + 3.0 + 6.0 / 8),
        (Demand(1, 200.0, "new"), 2.0 + 50.0 + 30.0),
        (Demand(1, 0.5, "new", "bulk"), 0.5 + 1.0 * 8),
        (Demand(1, 100.0, "new", "bulk"), 30.0 + 52.0),
    ],
)
def test_others_come_before_a_demand_by_their_shares(asks: Demand, before: float) -> None:
    """Of each other caller of its priority no more than it gets itself, an eighth of that or eight times as much of the
    other priority.
    """
    owed = Backlog()
    for demand in (Demand(1, 2.0, "a"), Demand(1, 50.0, "b"), Demand(1, 30.0, "c", "bulk")):
        owed.enter(demand)
    assert owed.before(asks) == pytest.approx(before)


def late(seconds: float, patience: float, *, is_learnt: bool = True) -> Demand:
    return Demand(1, seconds, "late", deadline=now() + patience, is_learnt=is_learnt)


@with_scheduler
async def test_a_deadline_that_would_be_missed_is_refused_with_the_estimate(scheduler: Scheduler) -> None:
    leases = await admitted(scheduler, Demand(1, 4.0, "late"))
    with pytest.raises(Overloaded, match="done in 102 s by estimate, and its deadline is in") as caught:
        await scheduler.admitted(late(100.0, 90.0))
    assert caught.value.retry_after == pytest.approx(4.0 / THREADS)
    assert in_flight() == 1
    close(*leases)


@with_scheduler
async def test_one_that_would_be_met_is_admitted(scheduler: Scheduler) -> None:
    close(*await admitted(scheduler, Demand(1, 4.0, "late"), late(100.0, 1000.0)))


@with_scheduler
async def test_what_is_not_learnt_refuses_nothing(scheduler: Scheduler) -> None:
    close(*await admitted(scheduler, Demand(1, 4.0, "late"), late(100.0, 90.0, is_learnt=False)))


@with_scheduler
async def test_an_idle_server_tries(scheduler: Scheduler) -> None:
    """Else an estimate that is too high would never be learnt anew."""
    close(*await admitted(scheduler, late(100.0, 1.0)))


@with_scheduler
async def test_the_backlog_is_less_by_what_is_done(scheduler: Scheduler) -> None:
    lease = await scheduler.admitted(Demand(1, 3.0))
    for left in (2.0, 1.0, 0.0):
        await lease.run(int, 1.0)
        assert (backlog(), lease.seconds) == (left, left)
    lease.extend(5.0)
    assert backlog() == 5.0
    await lease.run(int)
    assert backlog() == 0.0
    close(lease)


@with_scheduler
async def test_and_by_what_failed_or_was_never_begun(scheduler: Scheduler) -> None:
    def fail() -> None:
        raise ValueError

    one, other = await admitted(scheduler, Demand(1, 3.0), Demand(1, 4.0))
    with pytest.raises(ValueError):  # noqa: PT011  # its own
        await one.run(fail, 1.0)
    assert backlog() == 6.0
    one.close()
    assert backlog() == 4.0
    close(other)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.0, 1e6), st.integers(1, 50)), max_size=30))
def test_roundings_leave_nothing_of_the_backlog_behind(them: list[tuple[str, float, int]]) -> None:
    owed, demands = Backlog(), [(Demand(1, seconds, caller), parts) for caller, seconds, parts in them]
    for demand, _ in demands:
        owed.enter(demand)
    for demand, parts in demands:
        for _ in range(parts):
            owed.change(demand, -demand.seconds / parts)
        owed.leave(demand, 0.0)
    assert (owed.seconds, owed.before(Demand(1, 1.0))) == (0.0, 0.0)


@with_scheduler
async def test_messages_that_wait_for_memory_take_a_quarter_of_it(scheduler: Scheduler) -> None:
    most = BUDGET // 4
    leases = await admitted(scheduler, Demand(BUDGET))
    waiting = [asyncio.create_task(scheduler.run(Demand(1, waiting_bytes=1), int)) for _ in range(most)]
    await asyncio.sleep(0)  # one turn of the loop, in which all of them join the queue
    with pytest.raises(Overloaded, match=f"{most} bytes of messages wait for memory, of {most}") as caught:
        await scheduler.admitted(Demand(1, waiting_bytes=1))
    assert caught.value.retry_after == SHORTEST_RETRY  # by estimate nothing is left to do
    close(*leases)
    assert await asyncio.gather(*waiting) == [0] * most


@pytest.mark.parametrize("ending", ["granted", "cancelled"])
def test_a_message_larger_than_that_may_wait_alone(ending: str) -> None:
    @with_scheduler
    async def test(scheduler: Scheduler) -> None:
        for _ in range(2):  # what waited before does not wait any more
            leases = await admitted(scheduler, Demand(BUDGET))
            large = asyncio.create_task(scheduler.run(Demand(BUDGET, waiting_bytes=BUDGET), partial(int, 3)))
            await asyncio.sleep(0)  # one turn of the loop, in which it joins the queue
            with pytest.raises(Overloaded):
                await scheduler.admitted(Demand(1, waiting_bytes=1))
            if ending == "cancelled":
                large.cancel()
            close(*leases)
            await asyncio.wait([large])
            assert large.cancelled() if ending == "cancelled" else large.result() == 3

    test()


@pytest.mark.parametrize("moment", ["before", "after"])
def test_who_leaves_the_queue_for_memory_before_or_after_the_grant_leaves_nothing(moment: str) -> None:
    @with_scheduler
    async def test(scheduler: Scheduler) -> None:
        before = saved("memory")
        (lease,) = await admitted(scheduler, Demand(BUDGET))
        work = Work()
        waiting = asyncio.create_task(scheduler.run(Demand(BUDGET, 2.0), work))
        await asyncio.sleep(0)  # one turn of the loop, in which it joins the queue
        if moment == "before":
            waiting.cancel()
        lease.close()
        if moment == "after":
            waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert not work.started.is_set()
        assert (saved("memory") - before, backlog(), held_bytes()) == (2.0, 0.0, 0)

    test()


@with_scheduler
async def test_who_leaves_as_the_queue_moves_has_had_no_turn(scheduler: Scheduler) -> None:
    order: list[str] = []

    def waits(caller: str, seconds: float) -> asyncio.Task[None]:
        return asyncio.create_task(scheduler.run(Demand(BUDGET, seconds, caller), partial(order.append, caller)))

    (lease,) = await admitted(scheduler, Demand(BUDGET))
    gone, stays = waits("a", 8.0), waits("b", 0.1)
    await asyncio.sleep(0)  # one turn of the loop, in which both join the queue
    gone.cancel()
    lease.close()
    later = [waits(caller, 0.1) for caller in "bbba"]
    await asyncio.gather(stays, *later)
    assert order in (["b", "b", "a", "b", "b"], ["b", "a", "b", "b", "b"])


@with_scheduler
async def test_there_is_room_for_what_is_over_at_once_beside_larger_work_that_waits(scheduler: Scheduler) -> None:
    leases = await admitted(scheduler, Demand(6))
    assert (scheduler.has_room(4), scheduler.has_room(5)) == (True, False)
    waiting = asyncio.create_task(scheduler.run(Demand(6), int))
    await until_in_loop(lambda: in_flight() == 2, "it to wait")
    assert (scheduler.has_room(4), scheduler.has_room(5)) == (True, False)
    close(*leases)
    await waiting
