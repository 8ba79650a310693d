"""What `auto` takes against the best of all back ends and algorithms: python -m benchmarks.choice.

Each shape runs in this process, through a back end's prepare and run, on everything that can do it; what the cost model
said of each stands beside it, which is what the model is fitted to.
"""

from __future__ import annotations

import argparse
import time
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks._measure import RESULTS, Table, duration, interleave, machine, medians, write
from convolver.core.backends import Backend, available
from convolver.core.choose import choose
from convolver.core.cost import estimate
from convolver.core.errors import Unsupported
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Tensor
from convolver.core.parse import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from convolver.core.dtypes import DTypeName
    from convolver.core.plan import Plan

HOPELESS = 6.0
"""Times the best, from which a candidate is timed once and not again."""

SLOW = 0.5
"""Seconds of a call, beside which what is done for a shape once makes no difference."""


class Case(NamedTuple):
    """One shape."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    parameters: dict[str, Any]
    dtype: DTypeName


def _case(name: str, input: Sequence[int], weight: Sequence[int], dtype: DTypeName = "float32", **kw: object) -> Case:
    return Case(name, tuple(input), tuple(weight), kw, dtype)


def _picture(size: int, kernel: int, dtype: DTypeName = "float32") -> Case:
    name = f"{'' if dtype == 'float32' else dtype + ' '}picture {size}, {kernel}x{kernel}"
    return _case(name, (1, 1, size, size), (1, 1, kernel, kernel), dtype)


CASES = [
    *(_picture(1024, kernel) for kernel in (3, 5, 7, 11, 15, 31, 63)),
    _picture(2048, 3),
    _picture(4096, 3),
    _picture(512, 9),
    _case("picture 2048, 1x9", (1, 1, 2048, 2048), (1, 1, 1, 9)),
    _case("colour in the batch, 5x5", (3, 1, 1024, 1024), (1, 1, 5, 5)),
    _case("colour, depthwise 5x5", (1, 3, 1024, 1024), (3, 1, 5, 5), groups=3, padding=2),
    _case("depthwise 128 at 56, 3x3", (8, 128, 56, 56), (128, 1, 3, 3), groups=128, padding=1),
    _case("depthwise 64 at 56, 7x7", (8, 64, 56, 56), (64, 1, 7, 7), groups=64, padding=3),
    _case("depthwise 64 at 56, 31x31", (8, 64, 56, 56), (64, 1, 31, 31), groups=64, padding=15),
    _case("depthwise 96 at 112, 3x3 s2", (2, 96, 112, 112), (96, 1, 3, 3), groups=96, padding=1, stride=2),
    _case("3 -> 8 at 1024, 3x3", (1, 3, 1024, 1024), (8, 3, 3, 3)),
    _case("4 -> 4 at 512, 5x5", (1, 4, 512, 512), (4, 4, 5, 5)),
    _case("8 -> 8 at 256, 15x15", (1, 8, 256, 256), (8, 8, 15, 15)),
    _case("2 -> 16 at 512, 3x3", (1, 2, 512, 512), (16, 2, 3, 3)),
    _case("3 -> 64 stem, 7x7 s2", (4, 3, 224, 224), (64, 3, 7, 7), stride=2, padding=3),
    _case("64 -> 64 at 56, 3x3", (1, 64, 56, 56), (64, 64, 3, 3), padding=1),
    _case("256 -> 256 at 14, 3x3", (1, 256, 14, 14), (256, 256, 3, 3), padding=1),
    _case("256 -> 64 at 56, 1x1", (4, 256, 56, 56), (64, 256, 1, 1)),
    _case("64 -> 64 at 56, 9x9", (1, 64, 56, 56), (64, 64, 9, 9), padding=4),
    _case("16 -> 16 at 128, 31x31", (1, 16, 128, 128), (16, 16, 31, 31)),
    _case("groups 4, 32 -> 32 at 64, 5x5", (8, 32, 64, 64), (32, 8, 5, 5), groups=4, padding=2),
    _case("FIR, 1025 taps", (1, 1, 1_000_000), (1, 1, 1025)),
    _case("FIR, 65 taps", (1, 1, 1_000_000), (1, 1, 65)),
    _case("FIR, 9 taps", (1, 1, 1_000_000), (1, 1, 9)),
    _case("stereo, 255 taps", (1, 2, 441_000), (2, 1, 255), groups=2),
    _case("full, 20001 taps", (1, 1, 100_000), (1, 1, 20_001), padding="full"),
    _case("1-D 64 -> 64, 9 taps", (8, 64, 2048), (64, 64, 9), padding=4),
    _case("volume 128, 3^3", (1, 1, 128, 128, 128), (1, 1, 3, 3, 3)),
    _case("volume 128, 9^3", (1, 1, 128, 128, 128), (1, 1, 9, 9, 9)),
    _case("volume 1 -> 8, 5^3", (1, 1, 64, 64, 64), (8, 1, 5, 5, 5)),
    _case("3-D 16 -> 16, 3^3", (1, 16, 16, 56, 56), (16, 16, 3, 3, 3), padding=1),
    _case("transposed 64 -> 32, 4x4 s2", (1, 64, 56, 56), (64, 32, 4, 4), transposed=True, stride=2, padding=1),
    _case("transposed 8 -> 3, 4x4 s2", (1, 8, 256, 256), (8, 3, 4, 4), transposed=True, stride=2, padding=1),
    _case("transposed 1 -> 1, 16x16 s8", (1, 1, 128, 128), (1, 1, 16, 16), transposed=True, stride=8),
    _picture(1024, 5, "float64"),
    _case("float64 16 -> 16 at 128, 3x3", (1, 16, 128, 128), (16, 16, 3, 3), "float64"),
    _case("3 -> 8 at 512, 5x5", (1, 3, 512, 512), (8, 3, 5, 5)),
    _case("depthwise 32 at 128, 15x15", (1, 32, 128, 128), (32, 1, 15, 15), groups=32, padding=7),
    _case("float64 FIR, 1025 taps", (1, 1, 1_000_000), (1, 1, 1025), "float64"),
    _case("complex64 4 -> 4 at 256, 5x5", (1, 4, 256, 256), (4, 4, 5, 5), "complex64"),
    _case("float16 3 -> 8 at 512, 3x3", (1, 3, 512, 512), (8, 3, 3, 3), "float16"),
    _case("picture 1024, 5x5, GELU", (1, 1, 1024, 1024), (1, 1, 5, 5), activation="gelu"),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of choice.json and choice.md")
    parser.add_argument("--threads", type=int, default=2, help="compute threads of each back end")
    parser.add_argument("--rounds", type=int, default=9, help="how often each is timed")
    parser.add_argument("--only", default="", help="cases whose name has this")
    options = parser.parse_args(arguments)
    backends = available("auto", options.threads)
    figures = {case.name: _compared(case, backends, options.rounds) for case in CASES if options.only in case.name}
    losses = [float(row["loss"]) for row in figures.values()]
    summary = {"worst": max(losses), "geometric mean": exp(sum(map(log, losses)) / len(losses)), "shapes": len(losses)}
    payload = {"machine": machine("numpy", "torch"), "summary": summary, "cases": figures}
    write("choice", payload, [_summary(summary), _table(figures)], options.out)


def _compared(case: Case, backends: Sequence[Backend], rounds: int) -> dict[str, Any]:
    calls, estimates = _candidates(case, backends)
    once = {name: _once(call) for name, call in calls.items()}
    hopeful = {name: call for name, call in calls.items() if once[name] < HOPELESS * min(once.values())}
    seconds = {**once, **medians(interleave(hopeful, rounds, warmup=1))}
    plan = _planned(case, backends, Execution())
    auto = f"{plan.backend} {plan.algorithm}"
    best = min(seconds, key=lambda name: seconds[name])
    loss = seconds[auto] / seconds[best]
    print(f"{case.name}: {auto}, {loss:.2f} of {best} ({duration(seconds[best])})", flush=True)
    return {"seconds": seconds, "estimates": estimates, "auto": auto, "best": best, "loss": loss}


def _candidates(case: Case, backends: Sequence[Backend]) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """What runs the case on each back end by each algorithm, and the seconds that the cost model gives it."""
    calls: dict[str, Callable[[], object]] = {}
    estimates = {}
    x, w = (_random(shape, case.dtype) for shape in (case.input, case.weight))
    for backend in backends:
        for algorithm in backend.capability.algorithms:
            execution = Execution(backend=backend.capability.name, algorithm=algorithm)
            try:
                plan = _planned(case, [backend], execution)
            except Unsupported:
                continue
            name = f"{plan.backend} {plan.algorithm}"
            calls[name] = lambda backend=backend, plan=plan: backend.run(plan, backend.prepare(plan, w, None), x)  # type: ignore[misc]  # mypy does not see through such defaults
            estimates[name] = estimate(plan.geometry, plan.backend, plan.threads, plan.algorithm).seconds
    return calls, estimates


def _planned(case: Case, backends: Sequence[Backend], execution: Execution) -> Plan:
    operation = parse(Tensor(case.dtype, case.input), Tensor(case.dtype, case.weight), None, case.parameters)  # type: ignore[arg-type]  # words of the cases above
    return choose(Geometry.of(operation), execution, [backend.capability for backend in backends])


def _random(shape: Sequence[int], dtype: str) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    return values.astype(dtype)


def _once(call: Callable[[], object]) -> float:
    """The second of two calls, since the first of a shape compiles; or a first one that is slow in any case."""
    for last in (False, True):
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        if last or seconds > SLOW:
            break
    return seconds


def _summary(summary: dict[str, Any]) -> Table:
    rows = [[name, f"{value:.2f}" if isinstance(value, float) else str(value)] for name, value in summary.items()]
    return Table("auto over the best", ("", "times"), rows)


def _table(figures: dict[str, dict[str, Any]]) -> Table:
    names = list(dict.fromkeys(name for row in figures.values() for name in row["seconds"]))
    rows = []
    for case, row in figures.items():
        cells = [
            f"{duration(row['seconds'][name])} ({duration(row['estimates'][name])})" if name in row["seconds"] else ""
            for name in names
        ]
        rows.append([case, *cells, row["auto"], f"{row['loss']:.2f}"])
    return Table("Median (and estimate)", ("shape", *names, "auto took", "auto / best"), rows)


if __name__ == "__main__":
    main()
