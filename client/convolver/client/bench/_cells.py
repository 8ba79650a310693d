"""Figures of one workload under one number of callers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Self

from convolver.client.bench._load import Load
from convolver.client.bench._processes import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from convolver.client.bench._workloads import Workload


@dataclass(frozen=True, slots=True)
class Round:
    """A load, and what the two ends used for it."""

    load: Load
    client: Usage
    server: Usage

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> Self:
        """Of what `dataclasses.asdict` and JSON make of it."""
        return cls(Load(**told["load"]), Usage(*told["client"]), Usage(*told["server"]))


@dataclass(frozen=True, slots=True)
class Cell:
    """Seconds, CPU seconds of a request, bytes of memory at the peak; None is not known. `asked` are the numbers of
    callers that `callers` stands for; `spread` is how far apart the medians of the rounds were, over the median.
    """

    workload: str
    asked: list[int]
    callers: int
    requests: int
    median: float | None
    p99: float | None
    requests_per_second: float
    gigabytes_per_second: float
    client_cpu: float | None
    server_cpu: float | None
    client_peak: int | None
    server_peak: int | None
    spread: float
    errors: dict[str, int]

    @classmethod
    def of(cls, workload: Workload, asked: Sequence[int], callers: int, rounds: Sequence[Round]) -> Self:
        """All rounds together."""
        latencies = sorted(latency for one in rounds for latency in one.load.latencies)
        number = len(latencies)
        rate = number / sum(one.load.seconds for one in rounds)
        clients, servers = [one.client for one in rounds], [one.server for one in rounds]
        return cls(
            workload=workload.name,
            asked=list(asked),
            callers=callers,
            requests=number,
            median=median(latencies) if latencies else None,
            p99=latencies[math.ceil(0.99 * number) - 1] if latencies else None,
            requests_per_second=rate,
            gigabytes_per_second=rate * workload.bytes / 1e9,
            client_cpu=_cpu(clients, number),
            server_cpu=_cpu(servers, number),
            client_peak=_peak(clients),
            server_peak=_peak(servers),
            spread=_spread(rounds),
            errors=dict(sum((Counter(one.load.errors) for one in rounds), Counter[str]())),
        )


def _cpu(usages: Sequence[Usage], requests: int) -> float | None:
    known = [usage.cpu_seconds for usage in usages if usage.cpu_seconds is not None]
    return sum(known) / requests if known and requests else None


def _peak(usages: Sequence[Usage]) -> int | None:
    return max((usage.peak_bytes for usage in usages if usage.peak_bytes is not None), default=None)


def _spread(rounds: Sequence[Round]) -> float:
    medians = [median(one.load.latencies) for one in rounds if one.load.latencies]
    return (max(medians) - min(medians)) / median(medians) if medians else 0.0
