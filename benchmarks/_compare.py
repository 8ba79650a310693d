"""This run against the last one that was committed."""

from __future__ import annotations

import json
import subprocess
from math import exp, log
from typing import TYPE_CHECKING, NamedTuple

from benchmarks._rows import Row, by_key
from benchmarks._services import OURS
from benchmarks.triton.environment import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks._rows import Key
    from convolver.client.bench import Cell

COMMITTED = "benchmarks/results/service.json"
NOISE = 0.25
"""How much longer a median may be by chance, on two cores that the load shares with the server."""


class Comparison(NamedTuple):
    """A median over the committed one, divided by the machine's drift; `bound` is where noise ends."""

    key: Key
    ratio: float
    bound: float

    @property
    def is_regression(self) -> bool:
        """Whether it is slower than noise explains."""
        return self.ratio > self.bound


def committed() -> list[Row] | None:
    """The rows of the last commit, if it has any."""
    command = ("git", "show", f"HEAD:{COMMITTED}")
    try:
        shown = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return [Row.from_json(one) for one in json.loads(shown.stdout)["cells"]]


def drift(now: dict[Key, Cell], then: dict[Key, Cell]) -> float:
    """How much slower the machine is now, by the services that are not ours: the geometric mean of their ratios."""
    ratios = [ratio for key in now if key[0] not in OURS and (ratio := _ratio(now[key], then.get(key)))]
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else 1.0


def compared(rows: Sequence[Row], before: Sequence[Row]) -> list[Comparison]:
    """Each of our cells that both runs have, the worst first."""
    now, then = by_key(list(rows)), by_key(list(before))
    machine = drift(now, then)
    found = []
    for key, cell in now.items():
        ratio = _ratio(cell, then.get(key)) if key[0] in OURS else None
        if ratio is not None:
            bound = 1 + max(NOISE, cell.spread + then[key].spread)
            found.append(Comparison(key, ratio / machine, bound))
    return sorted(found, key=lambda one: one.bound - one.ratio)


def _ratio(now: Cell, then: Cell | None) -> float | None:
    if then is None or now.median is None or then.median is None:
        return None
    return now.median / then.median
