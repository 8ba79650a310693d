"""examples/resnet18.py: what it prints of the network is right, and it notices a service that computes otherwise."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import RunningServer

torch: Any = pytest.importorskip("torch", reason="torch is not installed, and the example is made of it")
pytest.importorskip("PIL", reason="Pillow is not installed, and the example opens a picture")

from examples import resnet18  # noqa: E402 - it needs both
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402 - it needs torch

SIZE = 64


@pytest.fixture(scope="module")
def said(server: RunningServer) -> str:
    """What it prints of a small picture."""
    command = [sys.executable, str(Path(resnet18.__file__)), f"--size={SIZE}"]
    environment = os.environ | {"CONVOLVER_ADDRESS": server.address}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_receptive_fields_grow_to_435(said: str) -> None:
    rows = re.findall(r"^(conv1|maxpool|layer\S+) +(\S+) +\S+ +(\d+) +(\d+) +(\S+)$", said, re.MULTILINE)
    assert len(rows) == 18
    assert rows[0] == ("conv1", "64x32x32", "7", "2", "0.5")
    assert rows[-1] == ("layer4.1.conv2", "512x2x2", "435", "32", "0.5")


def test_a_position_of_the_last_stage_sees_435_pixels_across() -> None:
    network = resnet18.ResNet18().double()
    network.maxpool = torch.nn.AvgPool2d(3, 2, 1)  # a maximum passes the gradient to one of its inputs alone
    for parameter in network.parameters():
        parameter.abs_().clamp_(min=1e-3)  # nothing cancels, so what is seen has a gradient
    image = torch.ones(1, 3, 8, 448 + 32, dtype=torch.float64, requires_grad=True)
    hidden = network.maxpool(network.bn1(network.conv1(image)).relu())
    hidden = network.layer4(network.layer3(network.layer2(network.layer1(hidden))))
    (gradient,) = torch.autograd.grad(hidden[0, 0, 0, 7], image)
    (seen,) = gradient[0, 0].abs().sum(0).nonzero(as_tuple=True)
    assert (seen.min().item(), seen.max().item()) == (7 * 32 - 217, 7 * 32 + 217)


def test_parameters_and_products_are_counted_rightly(said: str) -> None:
    network = resnet18.ResNet18()
    with FlopCounterMode(display=False) as counter:
        network(resnet18.picture(SIZE))
    assert f"11,689,512 parameters, {counter.get_total_flops() // 2:,} multiply-accumulates" in said


def test_here_and_there_agree(said: str) -> None:
    found = re.search(r"largest difference (\S+), tolerance (\S+): agrees$", said, re.MULTILINE)
    assert found
    assert float(found[1]) <= float(found[2]) < 1e-3


def in_bfloat16(network: Any, _client: Any) -> Any:  # noqa: ANN401 - modules
    """The network with its weights rounded, in place of one whose convolutions are remote."""
    return network.bfloat16().float()


def broken(network: Any, _client: Any) -> Any:  # noqa: ANN401 - modules
    """The network with a logit that is no number."""
    network.fc.bias[3] = torch.nan
    return network


@pytest.mark.parametrize("wrong", [in_bfloat16, broken])
def test_a_service_that_computes_otherwise_is_noticed(
    server: RunningServer,
    wrong: Callable[[Any, Any], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CONVOLVER_ADDRESS", server.address)
    monkeypatch.setattr(resnet18, "to_remote", wrong)
    monkeypatch.setattr(sys, "argv", ["resnet18.py", f"--size={SIZE}"])
    with pytest.raises(SystemExit) as ended:
        resnet18.main()
    assert ended.value.code == 1
    assert capsys.readouterr().out.endswith("DIFFERS\n")


def test_the_tolerance_is_above_the_errors_of_rounding_and_not_far() -> None:
    torch.manual_seed(1)
    network, images = resnet18.ResNet18(), resnet18.picture(SIZE)
    exact = copy.deepcopy(network).double()
    errors = (network(images) - exact(images.double())).abs()
    deviation = resnet18.rounding_deviation(exact, images.double(), int(errors.argmax()))
    assert errors.max() < resnet18.DEVIATIONS * deviation < 1000 * errors.max()
