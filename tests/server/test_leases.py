"""Leases: bytes that are held over several pieces of work, none of which holds a thread while it waits for the next."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.server.test_scheduler import THREADS, Work, cancel, held_bytes, in_flight, with_scheduler
from tests.wait import until_in_loop

from convolver.server.demand import Demand

if TYPE_CHECKING:
    from convolver.server.scheduler import Scheduler


@with_scheduler
async def test_a_lease_holds_its_bytes_over_all_that_it_runs(scheduler: Scheduler) -> None:
    lease = await scheduler.admitted(Demand(6))
    assert [await lease.run(partial(int, number)) for number in range(5)] == list(range(5))
    assert (held_bytes(), in_flight()) == (6, 1)
    lease.close()
    assert (held_bytes(), in_flight()) == (0, 0)


@with_scheduler
async def test_a_lease_holds_no_thread_between_what_it_runs(scheduler: Scheduler) -> None:
    leases = [await scheduler.admitted(Demand(1)) for _ in range(THREADS + 1)]
    for lease in leases:
        await lease.run(int)
    assert await scheduler.run(Demand(1), partial(int, 7)) == 7
    for lease in leases:
        lease.close()


@with_scheduler
async def test_a_lease_that_is_closed_holds_its_bytes_while_what_it_began_runs(scheduler: Scheduler) -> None:
    lease, work = await scheduler.admitted(Demand(6)), Work()
    running = asyncio.create_task(lease.run(work))
    await work.has_started()
    await cancel(running)
    lease.close()
    assert (held_bytes(), in_flight()) == (6, 1)
    work.let_go.set()


@with_scheduler
async def test_a_lease_can_be_used_after_what_it_ran_has_failed(scheduler: Scheduler) -> None:
    lease, failing = await scheduler.admitted(Demand(6)), Work(error=ValueError("mine"))
    failing.let_go.set()
    with pytest.raises(ValueError, match="mine"):
        await lease.run(failing)
    assert await lease.run(partial(int, 3)) == 3
    assert held_bytes() == 6
    lease.close()


@with_scheduler
async def test_what_failed_work_held_is_let_go_of_without_a_collection(scheduler: Scheduler) -> None:
    held: list[weakref.ref[Work]] = []

    def fail() -> None:
        array = Work()
        held.append(weakref.ref(array))
        raise ValueError

    gc.disable()
    try:
        with suppress(ValueError):
            await scheduler.run(Demand(1), fail)
        await until_in_loop(lambda: held[0]() is None, "its frames to be let go of")
    finally:
        gc.enable()


@with_scheduler
async def test_so_is_what_failed_after_its_caller_had_left(scheduler: Scheduler) -> None:
    work, held = Work(error=ValueError()), list[weakref.ref[object]]()

    def fails() -> int:
        array = Work()
        held.append(weakref.ref(array))

        def runs() -> int:  # whose closure outlives what clears its frame
            array.let_go.set()
            return work()

        return runs()

    gc.disable()
    try:
        running = asyncio.create_task(scheduler.run(Demand(1), fails))
        await work.has_started()
        await cancel(running)
        work.let_go.set()
        await until_in_loop(lambda: held[0]() is None, "its frames to be let go of")
    finally:
        gc.enable()
