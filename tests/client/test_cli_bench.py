from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from tests.client.test_cli import LOADED

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client.conftest import Command
    from tests.conftest import RunningServer

SHORT = ("--seconds", "0")


def test_a_server_is_measured_with_both_ways_of_weights_and_each_number_of_callers(
    convolver: Command, server: RunningServer, tmp_path: Path
) -> None:
    target = tmp_path / "figures.json"
    ran = convolver("bench", server.address, "--workload", "tiny", "--callers", "1,3", *SHORT, "--json", target)
    told = json.loads(target.read_text())
    assert (ran.status, ran.err) == (0, "")
    assert told["versions"]["convolver"]
    assert [(cell["weights"], cell["callers"], cell["requests"]) for cell in told["cells"]] == [
        ("layers", 1, 1),
        ("layers", 3, 3),
        ("inline", 1, 1),
        ("inline", 3, 3),
    ]
    assert all(0 < cell["median"] <= cell["p99"] for cell in told["cells"])
    assert all(cell["server_peak"] > 10 << 20 for cell in told["cells"])
    assert ran.out.count("tiny") == 4


@pytest.mark.parametrize(("option", "ways"), [("--layers", {"layers"}), ("--inline", {"inline"})])
def test_one_way_of_weights_may_be_chosen(
    convolver: Command, server: RunningServer, tmp_path: Path, option: str, ways: set[str]
) -> None:
    asked = ("--workload", "tiny", "--callers", "1", option, "--json", tmp_path / "figures.json")
    assert convolver("bench", server.address, *asked, *SHORT).status == 0
    assert {cell["weights"] for cell in json.loads((tmp_path / "figures.json").read_text())["cells"]} == ways


def test_the_metrics_of_a_server_elsewhere_are_asked_for(
    convolver: Command, server: RunningServer, tmp_path: Path
) -> None:
    asked = ("--workload", "tiny", "--callers", "1", "--inline", "--json", tmp_path / "figures.json")
    ran = convolver("bench", server.address, *asked, *SHORT, "--metrics", f"{server.http}/metrics")
    assert ran.status == 0
    assert json.loads((tmp_path / "figures.json").read_text())["cells"][0]["server_peak"] > 10 << 20


def test_refusals_are_counted_and_shown(convolver: Command, serve: Callable[..., RunningServer]) -> None:
    server = serve("--max-work", "1000")
    ran = convolver("bench", server.address, "--workload", "tiny", "--callers", "2", "--inline", *SHORT)
    assert ran.status == 1
    assert "2 times LimitExceeded" in ran.out
    assert "--max-work" in ran.out
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--workload", "tyni"], "'--workload': 'tyni' is no workload; there are tiny, stem"),
        (["--callers", "0"], "'--callers': '0' is not between 1 and"),
        (["--callers", "1,x"], "'--callers': '1,x' is not numbers"),
        (["--seconds", "-1"], "'--seconds'"),
        ([""], "the address is ''"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(convolver: Command, options: list[str], complaint: str) -> None:
    assert complaint in convolver("bench", *options).complaint(2)


def test_a_folder_that_is_not_there_is_told_before_anything_is_measured(convolver: Command, tmp_path: Path) -> None:
    asked = ("127.0.0.1:1", "--json", tmp_path / "nowhere" / "figures.json")
    assert "there is no folder" in convolver("bench", *asked).complaint(1)


def test_metrics_that_do_not_answer_are_one_line(convolver: Command, server: RunningServer) -> None:
    asked = ("--workload", "tiny", *SHORT, "--metrics", "http://127.0.0.1:1/metrics")
    assert "http://127.0.0.1:1/metrics" in convolver("bench", server.address, *asked).complaint(1)


def test_no_server_at_the_address_is_one_line(convolver: Command) -> None:
    assert "127.0.0.1:1" in convolver("bench", "127.0.0.1:1").complaint(1)


def test_help_loads_neither_grpc_nor_numpy() -> None:
    command = [sys.executable, "-c", LOADED, "bench", "--help"]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not set(run.stdout.splitlines()[-1].split()) & {"grpc", "numpy", "google.protobuf", "torch"}
