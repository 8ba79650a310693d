"""A short run of every target, and that planted faults are found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.fuzz.__main__ import main
from tests.fuzz.names import MODULES, PLANTED

from convolver.v1 import convolution_service_pb2, layer_service_pb2, shared_memory_service_pb2

pytest.importorskip("atheris", reason="atheris is for Linux on x86-64")

pytestmark = pytest.mark.timeout(600)  # a busy machine makes minutes of the seconds of a run

RUNS = 1000
"""Inputs of each target, its seeds among them: one to three seconds on two idle cores."""


def fuzzed(folder: Path, name: str, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status, and the figures of the one target."""
    figures = folder / "figures.json"
    status = main([name, "--seed=1", f"--out={folder}", f"--json={figures}", *options])
    [outcome] = json.loads(figures.read_text())
    return status, outcome


@pytest.mark.parametrize("name", MODULES)
def test_a_short_run_finds_nothing(tmp_path: Path, name: str) -> None:
    status, outcome = fuzzed(tmp_path, name, f"--runs={RUNS}", "--seconds=300")
    assert status == 0, (tmp_path / name / "log").read_text(errors="replace")[-5000:]
    assert outcome["executions"] >= RUNS > 4 * len([*(tmp_path / name / "seeds").iterdir()])
    assert outcome["coverage"] > 0


@pytest.mark.parametrize(
    ("name", "artifact", "said"),
    [
        ("planted-error", "crash", "ZeroDivisionError: planted"),
        ("planted-hang", "timeout-*", "ERROR: libFuzzer: timeout"),
        ("planted-allocation", "crash", "AssertionError: no memory"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, name: str, artifact: str, said: str) -> None:
    hang = ["--timeout=3"] if name == "planted-hang" else []  # else a pause of the machine would be what is found
    status, outcome = fuzzed(tmp_path, name, "--seconds=300", *hang)
    assert status == 1
    assert outcome["exit"] != 0
    assert said in (tmp_path / name / "log").read_text(errors="replace")
    assert [str(path) for path in (tmp_path / name).glob(artifact)] == [outcome["found"]]


def test_every_fault_is_planted_in_a_target_of_its_own() -> None:
    assert not PLANTED.keys() & MODULES.keys()


def test_the_list_names_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.split() == [*MODULES]


def test_every_rpc_is_a_target() -> None:
    files = (convolution_service_pb2, layer_service_pb2, shared_memory_service_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    rpcs = {method.name for service in services for method in service.methods}
    assert rpcs
    assert rpcs - MODULES.keys() == set()
