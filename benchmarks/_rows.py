"""The figures of a run: a cell for each service, way of weights, workload and number of callers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

from convolver.client.bench import Cell, Weights

Key = tuple[str, str, str, int]
"""Service, weights, workload, callers asked for."""


class Row(NamedTuple):
    """One line."""

    service: str
    weights: Weights
    cell: Cell

    def told(self) -> dict[str, Any]:
        """For JSON."""
        return {"service": self.service, "weights": self.weights, **asdict(self.cell)}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Row:
        """Of what `told` gave."""
        rest = {name: value for name, value in told.items() if name not in ("service", "weights")}
        return cls(told["service"], told["weights"], Cell(**rest))


def by_key(rows: list[Row]) -> dict[Key, Cell]:
    """A cell for each number of callers asked for, also where fewer ran."""
    return {(row.service, row.weights, row.cell.workload, n): row.cell for row in rows for n in row.cell.asked}
