"""What the benchmarks share: the machine, the timing loop and how figures are written down."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, cast

from rich.console import Console
from rich.table import Table as RichTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RESULTS = Path(__file__).parent / "results"
PIPED_WIDTH = 200
"""Characters of a line where no terminal says how many it has."""

_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


@dataclass(frozen=True, slots=True)
class Table:
    """Figures to read: the first column is a name, the others are right-aligned."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def printable(self) -> RichTable:
        """For the terminal."""
        table = RichTable(title=self.title, title_justify="left")
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For the repository."""
        rule = [":--", *["--:"] * (len(self.columns) - 1)]
        lines = [f"| {' | '.join(cells)} |" for cells in (self.columns, rule, *self.rows)]
        return "\n".join([f"## {self.title}", "", *lines])


def machine(*packages: str) -> dict[str, str | int]:
    """What the figures depend on, with the installed versions of `packages`."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "date": datetime.now(UTC).date().isoformat(),
    }


def interleave(candidates: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each call. A round calls every candidate once, in an order of its own, so that drift and what the one
    before leaves behind (caches, the allocator's state) hit all alike.
    """
    order = Random(0)  # noqa: S311 - no cryptography
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(warmup + repeats):
        for name in order.sample(list(candidates), len(candidates)):
            elapsed = _time(candidates[name])
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The middle one of each candidate's times, in seconds."""
    return {name: median(times) for name, times in seconds.items()}


def duration(seconds: float) -> str:
    """`seconds` in a fitting unit, with about three digits."""
    unit, scale = next((pair for pair in _UNITS if seconds >= pair[1]), _UNITS[-1])
    value = seconds / scale
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def show(tables: Sequence[Table]) -> None:
    """Print them."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPED_WIDTH)
    for table in tables:
        console.print(table.printable())


def write(
    name: str, payload: Mapping[str, object], tables: Sequence[Table], out: Path = RESULTS, command: str = ""
) -> None:
    """Print `tables`; write them to `out`/`name`.md, and `payload`, which holds `machine()`, to `out`/`name`.json."""
    show(tables)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(payload, indent=2) + "\n")
    described = [f"{key} {value}" for key, value in cast("dict[str, object]", payload["machine"]).items()]
    parts = [
        f"# {name}",
        f"`{command or f'python -m benchmarks.{name}'}`: {', '.join(described)}",
        *(table.markdown() for table in tables),
    ]
    (out / f"{name}.md").write_text("\n\n".join(parts) + "\n")


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
