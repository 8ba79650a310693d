"""Figures as people read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convolver.client.bench._cells import Cell

UNKNOWN = "-"
_SECONDS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def row(cell: Cell) -> dict[str, str]:
    """A line of a table."""
    return {
        "workload": cell.workload,
        "callers": _callers(cell),
        "median": _duration(cell.median),
        "p99": _duration(cell.p99),
        "requests/s": _digits(cell.requests_per_second) if cell.requests else UNKNOWN,
        "GB/s": f"{cell.gigabytes_per_second:.2f}" if cell.requests else UNKNOWN,
        "CPU here": _duration(cell.client_cpu),
        "CPU server": _duration(cell.server_cpu),
        "peak here": _size(cell.client_peak),
        "peak server": _size(cell.server_peak),
        "errors": str(sum(cell.errors.values()) or ""),
    }


def _callers(cell: Cell) -> str:
    asked = ", ".join(map(str, cell.asked))
    return asked if cell.asked == [cell.callers] else f"{cell.callers} for {asked}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return UNKNOWN
    unit, scale = next((pair for pair in _SECONDS if seconds >= pair[1]), _SECONDS[-1])
    return f"{_digits(seconds / scale)} {unit}"


def _digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _size(number: int | None) -> str:
    return UNKNOWN if number is None else f"{number / 2**20:.0f} MiB"
