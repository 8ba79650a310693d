"""Our server against local torch, a naive service and PyTriton, in one run: python -m benchmarks.service.

Each service has a process that calls it, with the same load. Services take turns within a cell (a workload under some
number of callers), so that drift of the machine hits all alike.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import _compare, _figures, _report, _services
from benchmarks._children import Ended
from benchmarks._measure import RESULTS, machine
from benchmarks._rows import Row, by_key
from convolver.client.bench import CALLERS, WORKLOADS, Cell, Load, Round, Usage, callers_for

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from benchmarks._services import Service
    from convolver.client.bench import Weights, Workload

SERVICES = ("local", "naive", "echo", "convolver", "shared-memory", "pytriton")
LONGEST_SECONDS = 30
"""Of a round with one call for each caller."""

QUICK = ("local", "naive", "echo", "convolver", "shared-memory")


@dataclass(slots=True)
class Candidate:
    """A service with one way of weights, what it has done of the cell that is measured, and its last requests/s."""

    service: Service
    weights: Weights
    rounds: list[Round]
    wrong: str = ""
    rate: float = math.inf

    @property
    def seconds(self) -> float:
        """That it had so far."""
        return sum(one.load.seconds for one in self.rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the services are ended
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # of all below
    settings = _services.Settings(options.threads, "cuda" if torch.cuda.is_available() else "cpu")
    workloads = [WORKLOADS[name] for name in options.workload or (["tiny"] if options.quick else WORKLOADS)]
    if settings.device == "cuda" and not options.quick:
        workloads.append(_figures.FEATURE_MAPS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found, missing = _services.services(stack, settings, folder, options.service or _default(options))
        for name, reason in missing.items():
            print(f"{name} is not measured: {reason}", flush=True)
        rows = [row for one in workloads for row in _measured(found, one, options, missing)]
    figures = _figures.ratios(by_key(rows), settings.device)
    if not options.quick:
        figures.append(_figures.growth(settings))
    before = _compare.committed() if options.compare else None
    comparisons = _compare.compared(rows, before) if before else []
    payload = {
        "machine": machine("grpcio", "numpy", "torch"),
        "settings": {"threads": options.threads, "device": settings.device, "seconds": options.seconds},
        "missing": missing,
        "cells": [row.told() for row in rows],
        "figures": [figure._asdict() for figure in figures],
    }
    _report.write_run(payload, rows, figures, comparisons, options.out)
    if options.compare and before is None:
        print("no committed result to compare with")
    if options.fail_on_regression and any(one.is_regression for one in comparisons):
        sys.exit(1)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of service.json, .md and .svg (quick: none)")
    parser.add_argument("--quick", action="store_true", help="a few seconds: tiny, few callers, no PyTriton")
    parser.add_argument("--seconds", type=float, help="of a cell for each service (2; quick: 0.1)")
    parser.add_argument("--rounds", type=int, default=3, help="turns in which these are spent")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="that compute, here and there"
    )
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS), help="may be repeated; default: all")
    parser.add_argument("--callers", type=int, action="append", help=f"may be repeated; default: {CALLERS}")
    parser.add_argument("--service", action="append", choices=SERVICES, help="may be repeated; default: all")
    parser.add_argument("--compare", action=argparse.BooleanOptionalAction, default=True, help="with the last commit")
    parser.add_argument("--fail-on-regression", action="store_true", help="exit with 1 if one is marked")
    options = parser.parse_args(arguments)
    options.seconds = options.seconds or (0.1 if options.quick else 2.0)
    options.callers = options.callers or ([1, 4] if options.quick else CALLERS)
    options.out = options.out or (None if options.quick else RESULTS)
    return options


def _default(options: argparse.Namespace) -> tuple[str, ...]:
    return QUICK if options.quick else SERVICES


def _measured(
    services: Sequence[Service], workload: Workload, options: argparse.Namespace, missing: dict[str, str]
) -> Iterator[Row]:
    """A row for each candidate and number of callers, but for those that would take too long, which are told."""
    candidates = [Candidate(service, way, []) for service in services for way in service.weights]
    check_samples(candidates, workload)
    for callers, asked in callers_for(workload, options.callers).items():
        print(f"{workload.name}, {callers} callers", file=sys.stderr, flush=True)
        fitting = [one for one in candidates if callers <= one.service.most_callers]
        slow = [one for one in fitting if callers > one.rate * LONGEST_SECONDS and one.rate]
        for one in slow:
            text = f"a call of each would take {callers / one.rate:.0f} s, and at most {LONGEST_SECONDS} are waited"
            missing[f"{one.service.name}, {workload.name}, {callers} callers"] = text
        fitting = [one for one in fitting if one not in slow]
        _take_turns(fitting, workload, callers, options)
        yield from (Row(one.service.name, one.weights, _cell(one, workload, asked, callers)) for one in fitting)


def check_samples(candidates: Sequence[Candidate], workload: Workload) -> None:
    """Candidates whose outputs are not those of the first one are left out, and told. An echo has none."""
    expected: list[float] = []
    for one in candidates:
        try:
            found = one.service.worker.sample(workload, one.weights)["sample"]
        except Ended as error:
            one.wrong = str(error)
            continue
        expected = expected or found
        if found and not np.allclose(found, expected, rtol=1e-3, atol=1e-3):
            one.wrong = "its output is wrong"


def _take_turns(candidates: Sequence[Candidate], workload: Workload, callers: int, options: argparse.Namespace) -> None:
    """Rounds in which each candidate has its turn, in an order of its own; one whose time is used up sits out."""
    order = Random(0)  # noqa: S311 - no cryptography
    for one in candidates:
        one.rounds = []
    for _ in range(options.rounds):
        for one in order.sample(candidates, len(candidates)):
            if one.seconds < options.seconds and not one.wrong:
                _take_turn(one, workload, callers, options.seconds / options.rounds)


def _take_turn(one: Candidate, workload: Workload, callers: int, seconds: float) -> None:
    worker = one.service.worker
    try:
        if not one.rounds and callers <= one.rate * seconds:
            worker.round(workload, one.weights, callers, 0.0)  # as many callers as never before: threads, connections
        one.rounds.append(worker.round(workload, one.weights, callers, seconds))
    except Ended as error:
        one.wrong = str(error)
    else:
        load = one.rounds[-1].load
        one.rate = len(load.latencies) / load.seconds


def _cell(one: Candidate, workload: Workload, asked: list[int], callers: int) -> Cell:
    nothing: dict[str, Any] = {"seconds": 1.0, "latencies": [], "errors": {one.wrong: 1}}
    rounds = [Round(Load(**nothing), Usage(), Usage())] if one.wrong else one.rounds
    return Cell.of(workload, asked, callers, rounds)


if __name__ == "__main__":
    main()
