"""Distinct shapes without end on one server: does what is kept of them stay bounded: python -m benchmarks.shapes.

Two servers get the same calls in turns: one with oneDNN's cache as it is shipped, one with a quarter of it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import median
from subprocess import STDOUT
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from benchmarks._children import child
from benchmarks._measure import RESULTS, Table, duration, machine, write
from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
SHIPPED, FEWER = "as shipped", "256"
BOUNDS = {SHIPPED: {}, FEWER: {CAPACITY: "256"}}
"""What the environment says to a server."""

BACKENDS = ("torch", "auto")
MIB, PAGE = 1 << 20, os.sysconf("SC_PAGE_SIZE")
PARTS = 10
"""Of the shapes, with one figure of RSS for each."""

PREDICTED = 0.02
"""Growth of RSS over the last fifth of the shapes, with the bound as it is shipped, was to be below that."""

AGAIN = (50, 200)
"""Shapes that come again and again: of 50 oneDNN keeps all, of 200 it would need more than it may keep."""

KINDS = (*[(2, False)] * 6, *[(2, True)] * 2, (1, False), (3, False))
"""Rank and whether in groups, one after the other."""

SIZES = {1: (64, 1024), 2: (16, 64), 3: (6, 16)}
"""The least and the most of an axis, by rank."""

CHANNELS, PER_GROUP = (1, 3, 8, 16, 32), (1, 2, 4, 8)
"""Of inputs and outputs: some few enough for the reference to be cheaper than torch, some not."""

BATCH = 2
"""Of one, torch computes small ones without oneDNN."""


class Work(NamedTuple):
    """A convolution's shapes."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    groups: int


class Call(NamedTuple):
    """Seconds until the answer was there, and those of them in which the server computed."""

    whole: float
    computing: float


class Server(NamedTuple):
    """A server, its bytes of RSS after each shape, and how often which back end has computed."""

    client: Client
    pid: int
    resident: list[float]
    computed: Counter[str]

    def call(self, work: Work) -> Call:
        """One convolution."""
        x, weight = (np.ones(shape, np.float32) for shape in (work.input, work.weight))
        begin = time.perf_counter()
        answer = self.client.run(x, weight, groups=work.groups)
        whole = time.perf_counter() - begin
        self.computed[answer.plan.backend] += 1
        return Call(whole, answer.report.seconds["compute"])

    def sample(self) -> None:
        """Notes what it holds now."""
        self.resident.append(int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * PAGE)


class Found(NamedTuple):
    """What became of the servers of one back end, by their bounds; the calls also by the number of shapes."""

    resident: dict[str, list[float]]
    computed: dict[str, Counter[str]]
    again: dict[int, dict[str, list[Call]]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=__doc__)
    parser.add_argument("--shapes", type=int, default=2500, help="distinct ones")
    parser.add_argument("--rounds", type=int, default=20, help="of 50 shapes that come again and again")
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="of the servers; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of shapes.json and shapes.md")
    options = parser.parse_args(arguments)
    os.environ.pop(CAPACITY, None)  # benchmarks/__init__.py has set it, and a server is to do so itself
    works = drawn(options.shapes)
    found = {backend: _measured(backend, works, options.rounds) for backend in options.backend or BACKENDS}
    _write(found, options.shapes, options.out)


def drawn(number: int) -> list[Work]:
    """Shapes that are all distinct, always the same ones."""
    random, found = Random(0), dict[Work, None]()  # noqa: S311 - no cryptography
    while len(found) < number:
        rank, in_groups = KINDS[len(found) % len(KINDS)]
        groups = random.choice((2, 4, 8)) if in_groups else 1
        channels, filters = (random.choice(PER_GROUP if in_groups else CHANNELS) * groups for _ in range(2))
        size = (random.randint(*SIZES[rank]) for _ in range(rank))
        kernel = (random.choice((1, 3, 5)),) * rank
        found[Work((BATCH, channels, *size), (filters, channels // groups, *kernel), groups)] = None
    return list(found)


def points(number: int) -> list[int]:
    """The first shape, and the last of each part."""
    return sorted({1, *(max(1, number * i // PARTS) for i in range(1, PARTS + 1))})


def medians(resident: Sequence[float]) -> list[float]:
    """Bytes after the first shape, and the middle one of each part: what malloc gives back at times is several MB."""
    return [resident[0], *(median(resident[a:b]) for a, b in pairwise(points(len(resident))))]


def growth(resident: Sequence[float]) -> float:
    """By which part of itself RSS grew over a fifth of the shapes, the last, from what `medians` gives."""
    return resident[-1] / resident[-1 - PARTS // 5] - 1


def _measured(backend: str, works: Sequence[Work], rounds: int) -> Found:
    with ExitStack() as stack:
        servers = {bound: stack.enter_context(_server(backend, said)) for bound, said in BOUNDS.items()}
        for work in works:
            for server in servers.values():
                server.call(work)
                server.sample()
        computed = {bound: server.computed.copy() for bound, server in servers.items()}
        again = {number: _again(servers, works[:number], max(1, rounds * AGAIN[0] // number)) for number in AGAIN}
    return Found({bound: medians(server.resident) for bound, server in servers.items()}, computed, again)


@contextmanager
def _server(backend: str, said: Mapping[str, str]) -> Iterator[Server]:
    """One that computes on the CPU alone: oneDNN is the CPU's."""
    flags = ("--listen=127.0.0.1:0", "--http-listen=none", "--exit-on-eof", f"--backend={backend}")
    command, environment = (sys.executable, "-m", "convolver.server", *flags), {"CUDA_VISIBLE_DEVICES": "", **said}
    with child(*command, environment=environment, stderr=STDOUT) as server, Client(server.ready()) as client:
        yield Server(client, server.process.pid, [], Counter())


def _again(servers: Mapping[str, Server], works: Sequence[Work], rounds: int) -> dict[str, list[Call]]:
    """The calls of each. In the round before the first, which does not count, they make what they had forgotten."""
    order = Random(0)  # noqa: S311 - no cryptography
    calls: dict[str, list[Call]] = {bound: [] for bound in servers}
    for turn in range(rounds + 1):
        for bound in order.sample(list(servers), len(servers)):
            made = [servers[bound].call(work) for work in works]
            calls[bound] += made if turn else []
    return calls


def _write(found: Mapping[str, Found], number: int, out: Path) -> None:
    predicted = f"growth over the last fifth was predicted to be below {PREDICTED:.0%}"
    title = f"RSS in MiB, the median of each tenth of the distinct shapes, by its last; {predicted}"
    columns = ("server", *map(str, points(number)), "growth", "by torch")
    tables = [Table(title, columns, [row for backend, each in found.items() for row in _resident_rows(backend, each)])]
    for again in AGAIN:
        columns = ("server", "calls a second", "median", "of that computing")
        rows = [row for backend, each in found.items() for row in _again_rows(backend, each.again[again])]
        tables.append(Table(f"{min(again, number)} of them again and again, one caller", columns, rows))
    figures = {
        backend: {
            "resident": each.resident,
            "growth": {bound: growth(resident) for bound, resident in each.resident.items()},
            "computed": each.computed,
            "again": {times: _summaries(calls) for times, calls in each.again.items()},
        }
        for backend, each in found.items()
    }
    write("shapes", {"machine": machine("numpy", "torch"), "shapes": points(number), **figures}, tables, out)


def _resident_rows(backend: str, found: Found) -> list[list[str]]:
    return [
        [
            f"{backend}, {bound}",
            *(f"{each / MIB:.0f}" for each in resident),
            f"{growth(resident):+.1%}",
            str(found.computed[bound]["torch:cpu"]),
        ]
        for bound, resident in found.resident.items()
    ]


def _again_rows(backend: str, calls: Mapping[str, Sequence[Call]]) -> list[list[str]]:
    return [
        [f"{backend}, {bound}", f"{each['rate']:.0f}", duration(each["whole"]), duration(each["computing"])]
        for bound, each in _summaries(calls).items()
    ]


def _summaries(calls: Mapping[str, Sequence[Call]]) -> dict[str, dict[str, float]]:
    """Calls a second, and the medians of their seconds."""
    return {
        bound: {
            "rate": len(made) / sum(call.whole for call in made),
            "whole": median(call.whole for call in made),
            "computing": median(call.computing for call in made),
        }
        for bound, made in calls.items()
    }


if __name__ == "__main__":
    main()
