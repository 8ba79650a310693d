from __future__ import annotations

import json
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from convolver.server.merged_metrics import Family, MergedMetrics, families

DOCUMENT = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()

OF_THE_PARENT = list(MergedMetrics(lambda: ({}, 0)).registry.collect())


def one_workers(calls: int) -> list[Family]:
    """What a worker shows after so many calls of 0.2 s, on its way through JSON."""
    registry = CollectorRegistry()
    counter = Counter("calls_total", "Calls.", ("kind",), registry=registry)
    seconds = Histogram("call_seconds", "Their seconds.", buckets=(0.1, 1.0), registry=registry)
    Gauge("nothing", "No number.", registry=registry).set(float("nan"))
    for _ in range(calls):
        counter.labels(kind="a").inc()
        seconds.observe(0.2)
    return [Family(*family) for family in json.loads(json.dumps(families(registry)))]


def shown(*calls: int, silent: int = 0) -> list[str]:
    merged = MergedMetrics(lambda: (dict(enumerate(map(one_workers, calls))), silent))
    return generate_latest(merged.registry).decode().splitlines()


def test_each_sample_has_its_worker_and_each_metric_is_described_once() -> None:
    lines = shown(3, 5)
    start = lines.index("# HELP calls_total Calls.")
    assert lines[start : start + 4] == [
        "# HELP calls_total Calls.",
        "# TYPE calls_total counter",
        'calls_total{kind="a",worker="0"} 3.0',
        'calls_total{kind="a",worker="1"} 5.0',
    ]
    assert lines.count("# TYPE call_seconds histogram") == 1
    assert 'call_seconds_bucket{le="1.0",worker="1"} 5.0' in lines
    assert 'nothing{worker="0"} NaN' in lines


def test_a_worker_that_did_not_answer_is_counted() -> None:
    lines = shown(3, silent=2)
    assert "convolver_workers_silent 2.0" in lines
    assert not [line for line in lines if 'worker="1"' in line]


@pytest.mark.parametrize("family", OF_THE_PARENT, ids=lambda family: family.name)
def test_the_document_has_a_row_for_every_metric_of_the_parent(family: prometheus_client.Metric) -> None:
    name = family.name + "_total" * (family.type == "counter")
    row = next((line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}`")), "")
    assert f"| {family.type} |" in row
