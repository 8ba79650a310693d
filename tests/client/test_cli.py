from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, get_args

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from convolver.client.cli import _numbers
from convolver.client.pictures import _choices
from convolver.client.pictures._named_kernels import RECIPES
from convolver.core import parameters

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client.conftest import Command
    from tests.conftest import RunningServer

LOADED = """
import sys
from convolver.client.cli import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert not left.code
print(*sys.modules)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["filter", "--help"],
        ["plan", "--help"],
        ["map", "--help"],
        ["info", "-h"],
        ["health", "--help"],
    ],
)
def test_help_loads_neither_grpc_nor_numpy(arguments: list[str]) -> None:
    run = subprocess.run([sys.executable, "-c", LOADED, *arguments], check=True, capture_output=True, text=True)
    loaded = set(run.stdout.splitlines()[-1].split())
    assert "typer" in loaded
    assert not loaded & {
        "grpc",
        "numpy",
        "google.protobuf",
        "PIL",
        "tifffile",
        "imagecodecs",
        "torch",
        "convolver.server",
    }


def test_the_module_is_the_command() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "convolver.client.cli", "filter"], check=False, capture_output=True, text=True
    )
    assert (run.returncode, run.stdout, run.stderr) == (2, "", "convolver: Missing argument 'IN'.\n")


def test_the_version_is_that_of_the_package(convolver: Command) -> None:
    assert convolver("--version") == (0, f"convolver {version('convolver')}\n", "")


def test_help_names_every_kernel(convolver: Command) -> None:
    text = " ".join(convolver("filter", "--help").out.replace("│", " ").split())
    for name in RECIPES:
        family, _, axis = name.partition("-")
        assert family in text
        assert f"-{axis}" in text


def test_without_arguments_there_is_help(convolver: Command) -> None:
    status, out, err = convolver()
    assert (status, err) == (2, "")
    assert "filter" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["fliter"], "No such command 'fliter'. Did you mean 'filter'?"),
        (["filter", "a.png"], "Missing argument 'OUT'"),
        (["filter", "a.png", "b.png"], "Missing option '--kernel'"),
        (["filter", "a.png", "b.png", "--kernel", "box", "--rnage", "clip"], "No such option: --rnage"),
        (["plan", "--input", "1,3,5,5"], "Missing option '--weight'"),
        (["plan", "--input", "1,3,a", "--weight", "1"], "'--input': '1,3,a' is not numbers; write 2, 1,3,224,224"),
        (["plan", "--input", "", "--weight", "1"], "'--input': '' is not numbers"),
        (["plan", "--input", "1", "--weight", "1", "--padding", "sane"], "'--padding': 'sane' is not numbers"),
        (["plan", "--input", "1", "--weight", "1", "--padding", "1:2:3"], "'--padding': '1:2:3' is not numbers"),
        (["plan", "--input", "1", "--weight", "1", "--address", ""], "'--address': the address is ''"),
        (["info", "--timeout", "0"], "'--timeout'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    convolver: Command, arguments: list[str], complaint: str
) -> None:
    assert complaint in convolver(*arguments).complaint(2)


def test_the_words_of_the_command_are_those_of_the_service() -> None:
    assert get_args(_choices.PaddingMode) == get_args(parameters.PaddingMode)
    assert set(get_args(_choices.PicturePadding)) < set(get_args(parameters.PaddingWord))
    assert get_args(parameters.PaddingWord) == _numbers.WORDS


@pytest.mark.parametrize("shape", ["1,3,224,224", "1x3x224x224"])
def test_plan_says_what_would_run(convolver: Command, server: RunningServer, shape: str) -> None:
    weight = shape.replace("1", "64", 1).replace("224", "7")
    options = ["--stride", "2", "--padding", "3", "--address", server.address]
    ran = convolver("plan", "--input", shape, "--weight", weight, *options, "--json")
    told = json.loads(ran.out)
    assert (ran.status, ran.err) == (0, "")
    assert told["output"] == [1, 64, 112, 112]
    assert told["macs"] == 64 * 112 * 112 * 3 * 49
    assert told["padding"] == [[3, 3], [3, 3]]
    assert told["output_bytes"] == 4 * 64 * 112 * 112


def test_plan_prints_a_table(convolver: Command, server: RunningServer) -> None:
    ran = convolver("plan", "--input", "1,1,6,8", "--weight", "1,1,1,2", "--address", server.address)
    assert ran.status == 0
    assert "(1, 1, 6, 7)" in ran.out
    assert "macs" in ran.out


@pytest.mark.parametrize(
    ("options", "output", "padding"),
    [
        (["--padding", "same", "--dilation", "2", "--stride", "3"], [1, 1, 2, 2], [[1, 2], [1, 2]]),
        (["--padding", "0:1,2:0"], [1, 1, 4, 5], [[0, 1], [2, 0]]),
        (["--padding", "1,0", "--stride", "2,1"], [1, 1, 3, 3], [[1, 1], [0, 0]]),
        (["--padding=-1"], [1, 1, 1, 1], [[-1, -1], [-1, -1]]),
        (["--dilation", "2"], [1, 1, 1, 1], [[0, 0], [0, 0]]),
        (["--transposed", "--stride", "2", "--output-size", "12"], [1, 1, 12, 12], [[0, 0], [0, 0]]),
        (["--transposed", "--stride", "2", "--output-padding", "1", "--bias"], [1, 1, 12, 12], [[0, 0], [0, 0]]),
    ],
)
def test_plan_takes_every_parameter(
    convolver: Command, server: RunningServer, options: list[str], output: list[int], padding: list[list[int]]
) -> None:
    shapes = ["--input", "1,1,5,5", "--weight", "1,1,3,3", "--address", server.address]
    told = json.loads(convolver("plan", *shapes, *options, "--json").out)
    assert (told["output"], told["padding"]) == (output, padding)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--input", "1,3,5,5", "--weight", "1,4,3,3"], "3 channels"),
        (["--input", "1,1,2,2", "--weight", "1,1,3,3"], "3"),
        (["--input", "1,1,5,5", "--weight", "1,1,3,3", "--dtype", "float33"], "float33"),
        (["--input", "1,1,5,5", "--weight", "1,1,3,3", "--backend", "abacus"], "abacus"),
        (["--input", "1,1,5,5", "--weight", "1,1,3,3", "--stride", "99999999999"], "99999999999"),
    ],
)
def test_what_the_service_refuses_is_one_line_and_status_1(
    convolver: Command, server: RunningServer, options: list[str], complaint: str
) -> None:
    assert complaint in convolver("plan", *options, "--address", server.address).complaint(1)


def test_info_says_what_a_server_is(convolver: Command, server: RunningServer) -> None:
    ran = convolver("info", "--json", "--address", server.address)
    told = json.loads(ran.out)
    assert told["versions"]["convolver"] == version("convolver")
    assert "reference" in [backend["name"] for backend in told["backends"]]
    assert "limits" in told


def test_info_prints_a_table(convolver: Command, server: RunningServer) -> None:
    ran = convolver("info", "--address", server.address)
    assert ran.status == 0
    assert "back end reference" in ran.out


def test_health_is_status_0_while_the_server_serves(convolver: Command, server: RunningServer) -> None:
    assert convolver("health", server.address) == (0, "SERVING\n", "")
    assert convolver("health", server.address, "--service", "") == (0, "SERVING\n", "")


def test_health_is_status_1_while_the_server_does_not_serve(convolver: Command, tmp_path: Path) -> None:
    servicer = HealthServicer()
    servicer.set("convolver.v1.ConvolutionService", health_pb2.HealthCheckResponse.NOT_SERVING)
    draining = grpc.server(ThreadPoolExecutor(1))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, draining)
    draining.add_insecure_port(f"unix:{tmp_path}/socket")
    draining.start()
    ran = convolver("health", f"unix:{tmp_path}/socket")
    draining.stop(None).wait()
    assert ran == (1, "NOT_SERVING\n", "")


def test_health_takes_the_address_of_the_environment(
    convolver: Command, server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOLVER_ADDRESS", server.address)
    assert convolver("health") == (0, "SERVING\n", "")


def test_health_is_status_1_for_a_service_that_is_not_there(convolver: Command, server: RunningServer) -> None:
    complaint = convolver("health", server.address, "--service", "convolver.v9.None").complaint(1)
    assert f"{server.address} knows no service convolver.v9.None" in complaint


@pytest.mark.parametrize("command", [["health"], ["info", "--address"]])
def test_no_server_at_the_address_is_one_line_and_status_1(
    convolver: Command, tmp_path: Path, command: list[str]
) -> None:
    assert f"unix:{tmp_path}/none" in convolver(*command, f"unix:{tmp_path}/none").complaint(1)
