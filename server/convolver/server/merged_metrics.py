"""The metrics of a server with workers: those of each, told apart by a label, and a few of their parent's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, disable_created_metrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

disable_created_metrics()  # type: ignore[no-untyped-call]  # as shipped. They would nearly double each scrape.


class Family(NamedTuple):
    """One metric, in what JSON keeps as it is."""

    name: str
    help: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


def families(registry: CollectorRegistry) -> list[Family]:
    """What the registry shows now."""
    return [
        Family(metric.name, metric.documentation, metric.type, [(s.name, s.labels, s.value) for s in metric.samples])
        for metric in registry.collect()
    ]


class MergedMetrics(Collector):
    """All that the workers show, each sample with a label `worker`, and what is known of the workers themselves. Each
    scrape calls `ask`: the families of those who answered, by index, and the number of those who did not.
    """

    def __init__(self, ask: Callable[[], tuple[Mapping[int, list[Family]], int]]) -> None:
        self._ask = ask
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.serving = Gauge("convolver_workers", "Worker processes that can be called.", registry=self.registry)
        self.restarts = Counter(
            "convolver_worker_restarts_total",
            "Worker processes that ended by themselves, so that others took their places.",
            registry=self.registry,
        )
        self._silent = Gauge(
            "convolver_workers_silent",
            "Worker processes that did not tell their metrics in time, so that these are left out.",
            registry=self.registry,
        )

    def describe(self) -> list[Metric]:
        """Nothing: what the workers show is not known before they run."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Each family once, with all workers' samples. prometheus_client calls it before the parent's own."""
        told, silent = self._ask()
        self._silent.set(silent)
        merged: dict[str, Metric] = {}
        for worker, shown in sorted(told.items()):
            for family in shown:
                metric = merged.setdefault(family.name, Metric(family.name, family.help, family.type))
                for name, labels, value in family.samples:
                    metric.samples.append(Sample(name, {**labels, "worker": str(worker)}, value))
        yield from merged.values()
