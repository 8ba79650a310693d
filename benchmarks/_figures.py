"""The figures that were asked for, beside those measured."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from benchmarks._children import Ended
from benchmarks._services import ECHO, LOCAL, NAIVE, PYTRITON, SHARED, TCP, convolver_server, worker
from convolver.client.bench import WORKLOADS, Cell, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks._rows import Key
    from benchmarks._services import Settings

GIB = Workload("one GiB", (1, 1, 16384, 16384), (1, 1, 3, 3), padding=1)
MIB = 1 << 20


class Figure(NamedTuple):
    """What is asked, such as "at most 1.1", and what was measured; or why it could not be."""

    name: str
    asked: str
    measured: float | None
    reached: bool
    reason: str = ""


class _Ratio(NamedTuple):
    """One cell over another."""

    name: str
    bound: float
    over: Key
    under: Key
    of: Callable[[Cell], float | None]
    is_least: bool = False

    def figure(self, cells: Mapping[Key, Cell]) -> Figure:
        """As it was measured."""
        asked = f"at {'least' if self.is_least else 'most'} {self.bound:g}"
        values = []
        for key in (self.over, self.under):
            value = self.of(cells[key]) if key in cells else None
            if not value:
                return Figure(self.name, asked, None, reached=False, reason=_reason(key, cells.get(key)))
            values.append(value)
        measured = values[0] / values[1]
        reached = measured >= self.bound if self.is_least else measured <= self.bound
        return Figure(self.name, asked, measured, reached)


def _reason(key: Key, cell: Cell | None) -> str:
    said = next(iter(cell.errors), "no request succeeded") if cell else "not measured"
    return f"{key[0]}: {said}"


def _median(cell: Cell) -> float | None:
    return cell.median


def _rate(cell: Cell) -> float:
    return cell.requests_per_second


def _over_pytriton(name: str, callers: int, bound: float) -> _Ratio:
    title = f"{name}, requests/s at {callers} {'caller' if callers == 1 else 'callers'} over PyTriton's"
    ours, theirs = (TCP, "layers", name, callers), (PYTRITON, "layers", name, callers)
    return _Ratio(title, bound, ours, theirs, _rate, is_least=True)


RATIOS = (
    _Ratio(
        "big, shared memory, over local torch",
        1.1,
        (SHARED, "layers", "big", 1),
        (LOCAL, "layers", "big", 1),
        _median,
    ),
    _Ratio("big, TCP, over local torch", 1.6, (TCP, "layers", "big", 1), (LOCAL, "layers", "big", 1), _median),
    _Ratio(
        "picture, the naive service over ours",
        4.0,
        (NAIVE, "inline", "picture", 1),
        (TCP, "inline", "picture", 1),
        _median,
        is_least=True,
    ),
    _over_pytriton("tiny", 1, 4.0),
    _over_pytriton("feature-map", 1, 3.0),
    _over_pytriton("picture", 1, 3.0),
    *(_over_pytriton(name, 16, 2.0) for name in ("tiny", "feature-map", "picture")),
    _Ratio(
        "tiny, over a bare echo of as many bytes",
        1.8,
        (TCP, "layers", "tiny", 1),
        (ECHO, "inline", "tiny", 1),
        _median,
    ),
)

FEATURE_MAPS = Workload("feature-map-64", (64, 64, 56, 56), (64, 64, 3, 3), padding=1)
"""Measured on a GPU alone."""

ON_A_GPU = (
    *(
        _Ratio(
            f"GPU: {name}, shared memory, over local torch",
            1.15,
            (SHARED, "layers", name, 1),
            (LOCAL, "layers", name, 1),
            _median,
        )
        for name in (FEATURE_MAPS.name, "big")
    ),
    _Ratio(
        "GPU: tiny, requests/s of 64 callers over 1",
        5.0,
        (TCP, "layers", "tiny", 64),
        (TCP, "layers", "tiny", 1),
        _rate,
        is_least=True,
    ),
)


def ratios(cells: Mapping[Key, Cell], device: str) -> list[Figure]:
    """All ratios; those of a GPU only on one, and otherwise that there was none."""
    found = [one.figure(cells) for one in RATIOS]
    for one in ON_A_GPU:
        figure = one.figure(cells)
        found.append(
            figure if device == "cuda" else figure._replace(measured=None, reached=False, reason="no GPU here")
        )
    return found


def growth(settings: Settings) -> Figure:
    """How much a server grows for one request with an input and an output of 1 GiB each, over what it holds once it has
    served a small one.
    """
    name = "server's growth, 1 GiB in and 1 GiB out (1x1x16384x16384, 3x3), MiB"
    most = GIB.bytes / MIB + 256
    asked = f"at most {most:g}"
    try:
        with ExitStack() as stack:
            address, server = convolver_server(stack, settings, "--listen", "127.0.0.1:0")
            caller = worker(stack, settings, "convolver", address, server)
            caller.sample(WORKLOADS["tiny"], "inline")
            usage, load = (one := caller.round(GIB, "inline", 1, 0.0)).server, one.load
    except Ended as error:
        return Figure(name, asked, None, reached=False, reason=str(error))
    if load.errors or usage.peak_bytes is None or usage.idle_bytes is None:
        return Figure(name, asked, None, reached=False, reason=next(iter(load.errors), "there is no /proc"))
    measured = (usage.peak_bytes - usage.idle_bytes) / MIB
    return Figure(name, asked, measured, measured <= most)
