"""`convolver plan` of a stack in a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client.conftest import Command
    from tests.conftest import RunningServer

# The beginning of ResNet: 7x7 over 2, a maximum over 2, then a block's convolution, and what sees the whole.
STACK = """
input = [1, 3, 224, 224]

[[layers]]
kind = "conv"
weight = [64, 3, 7, 7]
stride = 2
padding = 3
activation = "relu"

[[layers]]
kind = "max"
kernel = 3
stride = 2
padding = 1

[[layers]]
kind = "conv"
weight = [64, 64, 3, 3]
bias = true
padding = "same"

[[layers]]
kind = "adaptive_average"
output_size = 1
"""


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack.toml"
    path.write_text(STACK)
    return path


def test_each_layer_is_planned(convolver: Command, server: RunningServer, stack: Path) -> None:
    ran = convolver("plan", stack, "--address", server.address, "--json")
    told = json.loads(ran.out)
    layers = told["layers"]
    assert (ran.status, ran.err) == (0, "")
    assert [layer["kind"] for layer in layers] == ["conv", "max", "conv", "adaptive_average"]
    assert [layer["output"] for layer in layers] == [[1, 64, 112, 112], *[[1, 64, 56, 56]] * 2, [1, 64, 1, 1]]
    assert [layer["weight"] for layer in layers] == [[64, 3, 7, 7], None, [64, 64, 3, 3], None]
    assert [layer["receptive_field"] for layer in layers[:3]] == [[7, 7], [11, 11], [19, 19]]
    assert [layer["jump"] for layer in layers] == [[2, 2], [4, 4], [4, 4], [224, 224]]
    assert [layer["start"] for layer in layers[:3]] == [[0.5, 0.5]] * 3
    assert [layer["parameter_count"] for layer in layers] == [64 * 3 * 49, 0, 64 * 64 * 9 + 64, 0]
    assert [layer["macs"] for layer in layers] == [64 * 112 * 112 * 3 * 49, 0, 64 * 56 * 56 * 64 * 9, 0]
    assert [layer["activation_bytes"] for layer in layers] == [4 * 64 * 112 * 112, *[4 * 64 * 56 * 56] * 2, 4 * 64]
    assert (layers[2]["padding"], layers[1]["padding"], layers[0]["activation"]) == ([[1, 1], [1, 1]], [1, 1], "relu")
    assert (told["input"], told["output"], told["dtype"]) == ([1, 3, 224, 224], [1, 64, 1, 1], "float32")
    for total in ("parameter_count", "macs"):
        assert told[total] == sum(layer[total] for layer in layers)
    assert told["output_bytes"] == 4 * 64


def test_the_table_has_a_line_for_each_layer_and_the_totals(
    convolver: Command, server: RunningServer, stack: Path
) -> None:
    ran = convolver("plan", stack, "--address", server.address, "--backend", "reference")
    lines = [line.split() for line in ran.out.splitlines()]
    assert (ran.status, ran.err) == (0, "")
    first = "0 conv 64x3x7x7 1x64x112x112 9,408 118,013,952 3,211,264 7 2 0.5 reference"
    second = "1 max 1x64x56x56 0 0 802,816 11 4 0.5 reference"
    assert first.split() in lines
    assert second.split() in lines
    assert ["│", "macs", "│", f"{118_013_952 + 64 * 56 * 56 * 64 * 9:,}", "│"] in lines


def test_dimensions_that_differ_are_told_apart(convolver: Command, server: RunningServer, tmp_path: Path) -> None:
    layer = {"kind": "conv", "weight": [1, 1, 3, 1], "stride": [2, 1]}
    path = tmp_path / "stack.json"
    path.write_text(json.dumps({"input": [1, 1, 9, 9], "layers": [layer, layer]}))
    ran = convolver("plan", path, "--address", server.address, "--backend", "reference")
    second = "1 conv 1x1x3x1 1x1x1x9 3 27 36 7x1 4x1 3.5x0.5 reference"
    assert second.split() in [line.split() for line in ran.out.splitlines()]


def test_input_and_dtype_may_be_others_than_the_files(convolver: Command, server: RunningServer, stack: Path) -> None:
    options = ["--input", "2x3x64x32", "--dtype", "float64", "--address", server.address, "--json"]
    told = json.loads(convolver("plan", stack, *options).out)
    assert (told["input"], told["dtype"]) == ([2, 3, 64, 32], "float64")
    assert told["layers"][0]["output"] == [2, 64, 32, 16]
    assert told["layers"][0]["activation_bytes"] == 8 * 2 * 64 * 32 * 16


def test_weights_come_from_a_file(convolver: Command, server: RunningServer, tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", w=np.ones((4, 3, 2, 2), np.float32))
    path = tmp_path / "stack.json"
    path.write_text(json.dumps({"input": [1, 3, 8, 8], "layers": [{"kind": "conv", "weight": "w"}]}))
    options = ["--weights", tmp_path / "w.npz", "--address", server.address, "--json"]
    told = json.loads(convolver("plan", path, *options).out)
    assert (told["layers"][0]["weight"], told["output"]) == ([4, 3, 2, 2], [1, 4, 7, 7])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--stride", "2"], "Option '--stride': the layers of a stack have their own."),
        (["--padding-mode", "zeros"], "Option '--padding-mode': the layers of a stack have their own."),
        (["--input", "1,b"], "'--input': '1,b' is not numbers"),
    ],
)
def test_options_of_one_convolution_do_not_go_with_a_stack(
    convolver: Command, stack: Path, options: list[str], complaint: str
) -> None:
    assert complaint in convolver("plan", stack, *options).complaint(2)


def test_weights_go_with_a_stack_alone(convolver: Command) -> None:
    shapes = ["--input", "1,1,3,3", "--weight", "1,1,1,1"]
    assert "Option '--weights': it goes with a stack." in convolver("plan", *shapes, "--weights", "w.npz").complaint(2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--input", "1,4,8,8"], "layers[0] (weight (64, 3, 7, 7)) takes the input, float32 (1, 4, 8, 8): input has 4"),
        (["--dtype", "float31"], "dtype is 'float31', which is none of"),
    ],
)
def test_a_stack_that_does_not_fit_is_refused(
    convolver: Command, server: RunningServer, stack: Path, options: list[str], complaint: str
) -> None:
    assert complaint in convolver("plan", stack, *options, "--address", server.address).complaint(1)


def test_a_file_that_is_no_stack_is_refused_before_a_server_is_asked(convolver: Command, tmp_path: Path) -> None:
    path = tmp_path / "stack.toml"
    path.write_text(STACK.replace("kernel", "kernle"))
    options = ["--address", "127.0.0.1:1", "--timeout", "0.1"]
    assert "layers[1].kernle is not known; did you mean kernel?" in convolver("plan", path, *options).complaint(1)
