from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import prometheus_client
import pytest
from prometheus_client import generate_latest

from convolver.core.errors import ConvolverError
from convolver.server import metrics

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "metrics.md").read_text()

OURS = [family for family in metrics.REGISTRY.collect() if family.name.startswith(("grpc_server_", "convolver_"))]

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def shown() -> str:
    """What a scrape would get."""
    return generate_latest(metrics.REGISTRY).decode()


@needs_promtool
def test_promtool_has_nothing_to_say_about_the_metrics() -> None:
    metrics.expect(["reference"])
    done = subprocess.run(["promtool", "check", "metrics"], input=shown(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_promtool
def test_promtool_accepts_the_configuration_of_prometheus() -> None:
    config = ROOT / "deploy" / "prometheus" / "prometheus.yml"
    done = subprocess.run(["promtool", "check", "config", config], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_names_are_the_ecosystems_and_our_own() -> None:
    assert {family.name + "_total" * (family.type == "counter") for family in OURS} == {
        "grpc_server_started_total",
        "grpc_server_handled_total",
        "grpc_server_handling_seconds",
        "grpc_server_msg_received_total",
        "grpc_server_msg_sent_total",
        "convolver_phase_seconds",
        "convolver_received_bytes_total",
        "convolver_sent_bytes_total",
        "convolver_macs_total",
        "convolver_in_flight",
        "convolver_memory_bytes",
        "convolver_refused_total",
        "convolver_queue_seconds",
        "convolver_batch_size",
        "convolver_unbatched_total",
        "convolver_backlog_seconds",
        "convolver_saved_seconds_total",
        "convolver_replanned_total",
        "convolver_layers",
        "convolver_layer_bytes",
        "convolver_layers_evicted_total",
        "convolver_shared_regions",
        "convolver_shared_region_bytes",
    }


def test_process_and_platform_are_shown_too() -> None:
    names = {family.name for family in metrics.REGISTRY.collect()}
    assert {"process_resident_memory_bytes", "process_open_fds", "python_info", "python_gc_collections"} <= names


def test_nothing_is_registered_where_other_libraries_register() -> None:
    names = {family.name for family in prometheus_client.REGISTRY.collect()}
    assert names.isdisjoint(family.name for family in OURS)


def test_no_series_tells_only_when_another_was_created() -> None:
    assert "_created" not in shown()


def test_buckets_reach_from_50_microseconds_to_a_minute() -> None:
    assert (metrics.SECONDS[0], metrics.SECONDS[-1]) == (50e-6, 60.0)
    assert list(metrics.SECONDS) == sorted(set(metrics.SECONDS))


def test_every_phase_of_an_expected_backend_is_shown_before_its_first_request() -> None:
    metrics.expect(["abacus"])
    for phase in metrics.PHASES:
        assert f'convolver_phase_seconds_count{{backend="abacus",phase="{phase}"}} 0.0' in shown()


def test_every_reason_to_refuse_is_shown_before_the_first_refusal() -> None:
    metrics.expect([])
    for reason in metrics.REASONS:
        assert f'convolver_refused_total{{reason="{reason}"}}' in shown()


def test_the_reasons_are_those_of_the_errors_on_the_wire() -> None:
    assert set(metrics.REASONS) < {error.reason for error in ConvolverError.__subclasses__()}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_the_operation_is_one_of_a_fixed_set(ndim: int, *, transposed: bool) -> None:
    assert metrics.operation(ndim, transposed=transposed) in metrics.OPERATIONS


@pytest.mark.parametrize("family", OURS, ids=lambda family: family.name)
def test_the_document_has_a_row_for_every_metric(family: prometheus_client.Metric) -> None:
    name = family.name + "_total" * (family.type == "counter")
    row = next((line for line in DOCUMENT.splitlines() if line.startswith(f"| `{name}`")), "")
    assert f"| {family.type} |" in row
