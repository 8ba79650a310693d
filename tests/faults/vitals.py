"""What a process holds: memory, threads, descriptors, and of a server the requests, regions and layers it counts."""

from __future__ import annotations

import gc
import re
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
MOST_RSS = 32 * MIB
"""Bytes by which a server may have grown after any number of repetitions."""

DEADLINE = 40.0
"""Seconds in which everything has to be let go of. gRPC keeps idle threads of its own for some 20 of them."""

MORE_THREADS, LAYERS = 2, 2
"""A server makes compute threads when it first needs them, up to twice its --threads, which are 2 here; and it keeps
the two layers of these callers, whichever calls bring them.
"""

PAUSE = 0.02

_MEMFD = "/memfd:"


class NotBackError(AssertionError):
    """A process holds more than before, and for longer than anything may take."""


class GrownError(NotBackError):
    """More memory, and nothing else."""


class Vitals(NamedTuple):
    """Of one process; the metrics are 0 where it is no server. `rss` and `dirty` are bytes."""

    rss: int
    dirty: int
    threads: int
    descriptors: int
    memfds: int
    in_flight: int = 0
    memory_bytes: int = 0
    shared_regions: int = 0
    shared_region_bytes: int = 0
    layers: int = 0


def of_process(pid: int) -> Vitals:
    """Of any process of this user."""
    proc = Path("/proc") / str(pid)
    rollup = (proc / "smaps_rollup").read_text()
    threads = len(list((proc / "task").iterdir()))
    links = list(_links(proc / "fd"))
    memfds = (proc / "maps").read_text().count(_MEMFD) + sum(link.startswith(_MEMFD) for link in links)
    return Vitals(_bytes(rollup, "Rss"), _bytes(rollup, "Private_Dirty"), threads, len(links), memfds)


def of_server(pid: int, http: str) -> Vitals:
    """Of a server, whose metrics are at `http`."""
    found = metrics(http)
    names = Vitals._fields[list(Vitals._fields).index("in_flight") :]
    return of_process(pid)._replace(**{name: int(found.get(f"convolver_{name}", 0)) for name in names})


def metrics(http: str) -> dict[str, float]:
    """The server's metrics by their series, as they are written."""
    with urllib.request.urlopen(f"{http}/metrics", timeout=30) as answer:  # noqa: S310 - our own http://
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {series: float(number) for series, _, number in (line.rpartition(" ") for line in lines)}


def excess(before: Vitals, after: Vitals) -> dict[str, str]:
    """What there is more of than before, as text; empty where everything is back."""
    layers, threads = max(before.layers, LAYERS), before.threads + MORE_THREADS
    more = {"rss": before.rss + MOST_RSS, "dirty": before.dirty + MOST_RSS}
    bounds = before._replace(**more, threads=threads, layers=layers)
    pairs = zip(Vitals._fields, before, bounds, after, strict=True)
    return {name: f"{name} {was} -> {now}" for name, was, bound, now in pairs if now > bound}


def settled(before: Vitals, take: Callable[[], Vitals]) -> Vitals:
    """What `take` gives, as soon as nothing is more than before. Raises NotBackError where that takes too long."""
    end = time.monotonic() + DEADLINE
    while more := excess(before, after := take()):
        if time.monotonic() > end:
            kind = GrownError if more.keys() <= {"rss", "dirty"} else NotBackError
            raise kind(f"not back after {DEADLINE} s: {', '.join(more.values())}")
        time.sleep(PAUSE)
        gc.collect()  # of the client: errors and the frames that they have passed refer to one another, and to arrays
    return after


def _links(folder: Path) -> list[str]:
    found = []
    for link in folder.iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(link.readlink()))
    return found


def _bytes(rollup: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", rollup, re.MULTILINE)
    assert found, rollup
    return int(found[1]) * 1024
