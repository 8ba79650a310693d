"""Where the server's event loop spends its time, by Python's profiler, which itself slows Python's own code about
twice: python -m benchmarks.profiles.
"""

from __future__ import annotations

import pstats
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks._measure import Table, machine, show
from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Mapping

CALLS = {
    "1x3x32x32 -> 16": ((1, 3, 32, 32), (16, 3, 3, 3), 3000),
    "1x64x56x56 -> 64": ((1, 64, 56, 56), (64, 64, 3, 3), 300),
    "4x3x1024x1024 -> 8": ((4, 3, 1024, 1024), (8, 3, 3, 3), 20),
}

PROFILED = """
import cProfile, sys
from convolver.server.__main__ import main
profile = cProfile.Profile()
try:
    profile.runcall(main)
except SystemExit:
    pass
finally:
    profile.dump_stats({file!r})
"""
"""Only the event loop's thread is profiled: sums that run in others are its waiting."""

GROUPS = (
    ("waiting, for callers and for sums in threads", ("method 'poll'",)),
    (
        "gRPC, compiled",
        ("method 'run' of '_contextvars", "_metrics_interceptor.py:write", "chunks.py:_write", "/grpc/"),
    ),
    ("asyncio", ("/asyncio/", "/selectors.py", "/contextlib.py")),
    (
        "wire: split, join, copies",
        ("core/wire.py", "server/incoming.py", "method 'join' of 'bytes'", "server/chunks.py"),
    ),
    ("sums on the loop", ("core/backends", "core/methods.py", "numpy", "torch")),
    ("metrics", ("prometheus_client", "_metrics_interceptor.py", "server/metrics.py")),
    ("the rest of ours", ("/convolver/",)),
)
"""The first whose parts stand in a function's file and name has its time."""


def main() -> None:
    """Measure and print."""
    print(machine("grpcio", "numpy", "torch"))
    found = {name: _profiled(*case) for name, case in CALLS.items()}
    groups = [name for name, _ in GROUPS] + ["other"]
    rows = [[group, *(f"{times[group] * 1e6:.0f}" for times in found.values())] for group in groups]
    show([Table("The event loop of the server, microseconds a call", ("of", *found), rows)])


def _profiled(shape: tuple[int, ...], weight_shape: tuple[int, ...], rounds: int) -> Mapping[str, float]:
    """Seconds of a call by group; what the server does before and after the calls is taken away."""
    many, few = (_seconds(shape, weight_shape, count) for count in (2 * rounds, rounds))
    return defaultdict(float, {group: max(0.0, many[group] - few[group]) / rounds for group in many})


def _seconds(shape: tuple[int, ...], weight_shape: tuple[int, ...], rounds: int) -> Mapping[str, float]:
    rng = np.random.default_rng(0)
    image, weight = (rng.standard_normal(each, np.float32) for each in (shape, weight_shape))
    with ExitStack() as stack:
        file = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "profile"
        command = [sys.executable, "-c", PROFILED.format(file=str(file))]
        flags = ["--listen", f"unix:{file}.socket", "--http-listen", "none"]
        server = stack.enter_context(subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True))
        assert server.stderr is not None  # noqa: S101 - it was asked for
        next(line for line in server.stderr if " listening on " in line)
        with Client(f"unix:{file}.socket") as client:
            for _ in range(rounds):
                client.conv2d(image, weight, padding=1)
        server.terminate()
        server.wait()
        return _by_group(pstats.Stats(str(file)))


def _by_group(stats: pstats.Stats) -> Mapping[str, float]:
    found = defaultdict[str, float](float)
    for (file, _, function), (_, _, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]  # the stub lacks it
        place = f"{file}:{function}"
        group = next((group for group, parts in GROUPS if any(part in place for part in parts)), "other")
        found[group] += own
    return found


if __name__ == "__main__":
    main()
