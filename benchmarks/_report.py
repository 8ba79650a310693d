"""A run as tables, JSON and a chart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks._chart import chart
from benchmarks._measure import Table, show, write
from benchmarks._rows import by_key
from benchmarks._services import LOCAL
from convolver.client.bench import WORKLOADS, row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks._compare import Comparison
    from benchmarks._figures import Figure
    from benchmarks._rows import Row


def write_run(
    payload: dict[str, Any],
    rows: Sequence[Row],
    figures: Sequence[Figure],
    comparisons: Sequence[Comparison],
    out: Path | None,
) -> None:
    """Print the tables; write service.json, service.md and service.svg into `out`, if it is given."""
    tables = [_asked(figures), *_tables(rows), _missing(payload["missing"]), _errors(rows), _compared(comparisons)]
    shown = [table for table in tables if table.rows]
    if out is None:
        show(shown)
        return
    write("service", payload, shown, out)
    with (out / "service.md").open("a") as file:
        file.write("\n![Times over local torch's](service.svg)\n")
    title = "Median time of a call over local torch's, 1 caller (left of 1: faster)"
    (out / "service.svg").write_text(chart(title, over_local(rows)))


def over_local(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """By workload and service, with one caller."""
    cells = by_key(list(rows))
    found: dict[str, dict[str, float]] = {}
    for (service, weights, workload, callers), cell in cells.items():
        local = cells.get((LOCAL, "layers", workload, 1))
        if callers == 1 and service != LOCAL and cell.median and local and local.median:
            found.setdefault(workload, {})[f"{service}, {weights}"] = cell.median / local.median
    return found


def _asked(figures: Sequence[Figure]) -> Table:
    rows = [[one.name, one.asked, _measured(one), _reached(one)] for one in figures]
    return Table("Asked and measured", ("figure", "asked", "measured", "reached"), rows)


def _missing(missing: dict[str, str]) -> Table:
    return Table("Not measured", ("what", "why"), [list(each) for each in missing.items()])


def _reached(figure: Figure) -> str:
    if figure.measured is None:
        return "-"
    return "yes" if figure.reached else "no"


def _measured(figure: Figure) -> str:
    if figure.measured is None:
        return f"not available: {figure.reason}"
    return f"{figure.measured:.{0 if figure.measured >= 100 else 2}f}"


def _tables(rows: Sequence[Row]) -> list[Table]:
    """One for each workload."""
    found = []
    for name in dict.fromkeys(one.cell.workload for one in rows):
        lines = [(one, row(one.cell)) for one in rows if one.cell.workload == name]
        columns = [title for title in lines[0][1] if title != "workload"]
        cells = [[one.service, one.weights, *(line[title] for title in columns)] for one, line in lines]
        found.append(Table(_title(name), ("service", "weights", *columns), cells))
    return found


def _title(name: str) -> str:
    workload = WORKLOADS.get(name)
    if workload is None:
        return name
    kernel, shape = "x".join(map(str, workload.weight)), "x".join(map(str, workload.input))
    return f"{name}: {shape}, weight {kernel}, stride {workload.stride}, groups {workload.groups}"


def _errors(rows: Sequence[Row]) -> Table:
    lines = [
        [one.service, one.weights, one.cell.workload, str(one.cell.callers), str(count), error]
        for one in rows
        for error, count in one.cell.errors.items()
    ]
    return Table("Errors", ("service", "weights", "workload", "callers", "times", "error"), lines)


def _compared(comparisons: Sequence[Comparison]) -> Table:
    lines = [
        [
            *map(str, one.key),
            f"{one.ratio:.2f}",
            f"{one.bound:.2f}",
            "REGRESSION" if one.is_regression else "",
        ]
        for one in comparisons
    ]
    title = "Median over that of the last commit, by how the other services fared"
    return Table(title, ("service", "weights", "workload", "callers", "ratio", "noise up to", ""), lines)
