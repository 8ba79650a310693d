"""Doing a fault many times: the server serves after each, and in the end holds no more than before."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks._measure import Table, machine, write
from tests.faults.vitals import MIB, GrownError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.faults.vitals import Vitals
    from tests.faults.world import Fault, World

TIMES = int(os.environ.get("FAULTS", "1"))
"""How often each fault is done, after WARM_UPS: few times with all other tests, and often by itself."""

WARM_UPS = 1 + TIMES // 3
"""How often it is done before that, until buffers and threads are there."""

ATTEMPTS = 2 if WARM_UPS < 3 else 1
"""To hold no more memory than before: faults come at random moments, so that one or two may not need what the next one
does. What leaks each time grows in each attempt.
"""

CROWD = 16
"""Calls at once that make a server start all its threads."""


@dataclass(slots=True)
class Row:
    """How a fault went: empty where it went well, else what was wrong."""

    fault: str
    times: int
    seconds: float
    before: Vitals | None = None
    after: Vitals | None = None
    wrong: str = "not finished"


def warm(world: World) -> None:
    """Makes the server start the threads that it starts when they are first needed."""
    calls: list[Callable[[], object]] = [lambda: world.client.plan((1, 1, 9, 9), (1, 1, 3, 3)), world.check_serves]
    with ThreadPoolExecutor(CROWD) as threads:
        for done in [threads.submit(call) for call in calls * 2 * CROWD]:
            done.result()


def endure(world: World, fault: Fault, row: Row) -> None:
    """Does the fault `row.times` times after some that warm up. Fails where the server does not serve the next call, or
    keeps something.
    """
    world.revive()
    warm(world)
    for _ in range(WARM_UPS):
        fault.do(world)
        world.check_serves()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _repeat(world, fault, row)
            break
        except GrownError:
            if attempt == ATTEMPTS:
                raise
    row.wrong = ""


def _repeat(world: World, fault: Fault, row: Row) -> None:
    """The fault `row.times` times. Raises NotBackError where it keeps something."""
    before = world.vitals()
    row.before, begin = before.server, time.monotonic()
    for _ in range(row.times):
        fault.do(world)
        world.check_serves()
        row.seconds = time.monotonic() - begin
    row.after = world.settled(before).server


def noted(row: Row, do: Callable[[], None]) -> None:
    """Runs it; what it raises stands in the row too."""
    try:
        do()
    except BaseException as error:
        row.wrong = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise


def write_down(rows: Sequence[Row], folder: Path) -> None:
    """faults.json and faults.md in the folder."""
    lines = [[row.fault, str(row.times), row.wrong or "ok", f"{row.seconds:.1f}", *_shown(row)] for row in rows]
    columns = ("fault", "times", "result", "seconds", "RSS, MiB", "threads", "descriptors", "memfds")
    payload = {"machine": machine("grpcio", "numpy"), "faults": [_plain(row) for row in rows]}
    write(
        "faults",
        payload,
        [Table("Every fault, and what the server holds before and after", columns, lines)],
        folder,
        "make faults",
    )


def _plain(row: Row) -> dict[str, Any]:
    vitals = {name: one._asdict() for name, one in (("before", row.before), ("after", row.after)) if one}
    return {**asdict(row), **vitals}


def _shown(row: Row) -> list[str]:
    if not row.before or not row.after:
        return ["", "", "", ""]
    before, after = row.before, row.after
    pairs = (
        (before.rss // MIB, after.rss // MIB),
        (before.threads, after.threads),
        (before.descriptors, after.descriptors),
        (before.memfds, after.memfds),
    )
    return [f"{was} -> {now}" for was, now in pairs]
