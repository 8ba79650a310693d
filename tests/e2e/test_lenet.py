"""examples/lenet.py: it learns, and all three ways of computing it are the same optimisation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.conftest import RunningServer
from tests.server.layer_calls import metric

from convolver.client import Client

torch: Any = pytest.importorskip("torch", reason="torch is not installed, and the example learns with it")
pytest.importorskip("sklearn", reason="scikit-learn is not installed, and the digits are its own")

from examples import lenet  # noqa: E402 - it needs both

EPOCH = re.compile(r"^epoch +\d+, loss (\S+), accuracy (\S+), \S+ s$", re.MULTILINE)
WAYS = (("Convolve", "unary"), ("ConvolveChunked", "bidi_stream"))  # a batch of all held-out digits comes in chunks
CALLS = tuple(
    f'grpc_server_started_total{{grpc_method="{name}",grpc_service="convolver.v1.ConvolutionService",grpc_type="{kind}"}}'
    for name, kind in WAYS
)
STEPS = 85  # an epoch's: of 16 of the 1,348 digits that are not held out


@pytest.fixture(scope="module")
def server(serve: Callable[..., RunningServer]) -> RunningServer:
    """One of a single thread, and a torch of a single one here: layers this small gain nothing from more."""
    torch.set_num_threads(1)
    return serve("--threads=1")


class Ran(NamedTuple):
    """Loss and accuracy of each epoch, and the calls that the server got."""

    epochs: list[tuple[float, float]]
    calls: float


def calls(server: RunningServer) -> float:
    """Those that convolve."""
    return sum(metric(server, name) for name in CALLS)


def ran(server: RunningServer, *flags: str) -> Ran:
    script = Path(lenet.__file__)
    environment, before = os.environ | {"CONVOLVER_ADDRESS": server.address}, calls(server)
    said = subprocess.run(
        [sys.executable, str(script), *flags], env=environment, check=True, capture_output=True, text=True
    ).stdout
    epochs = [(float(loss), float(accuracy)) for loss, accuracy in EPOCH.findall(said)]
    return Ran(epochs, calls(server) - before)


def test_the_stack_learns_to_read_in_two_calls_a_step(server: RunningServer) -> None:
    (first, second), made = ran(server, "--by=stack", "--epochs=2")
    assert second[0] < 1.2 < first[0]
    assert second[1] > 0.7  # by chance 0.1
    assert made == 2 * (2 * STEPS + 1)  # one more for each accuracy


@pytest.mark.parametrize(("by", "wanted"), [("layers", 4 * STEPS + 2), ("local", 0)])
def test_the_other_ways_make_as_many_calls_as_they_should(server: RunningServer, by: str, wanted: int) -> None:
    ((loss, accuracy),), made = ran(server, f"--by={by}", "--epochs=1")
    assert loss < 2.5
    assert accuracy > 0.4
    assert made == wanted


@pytest.mark.parametrize(("dtype", "precision"), [("float32", 1e-4), ("float64", 1e-12)])
@pytest.mark.parametrize("by", ["stack", "layers"])
def test_all_ways_take_the_same_steps(server: RunningServer, by: str, dtype: str, precision: float) -> None:
    start, there = moved(server, by, getattr(torch, dtype), steps=3)
    _, here = moved(server, "local", getattr(torch, dtype), steps=3)
    assert len(there) == len(here) == 10
    for was, one, other in zip(start, there, here, strict=True):
        step = (other - was).norm()
        assert step > 0
        assert (one - other).norm() <= precision * step


def moved(server: RunningServer, by: str, dtype: Any, *, steps: int) -> tuple[list[Any], list[Any]]:  # noqa: ANN401 - torch.dtype
    """The parameters before and after some steps from seed 0."""
    torch.manual_seed(0)
    learnt, _ = lenet.digits()
    network = lenet.lenet().to(dtype)
    start = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.SGD(network.parameters(), lenet.LEARNING_RATE, lenet.MOMENTUM)
    few = slice(0, steps * lenet.BATCH_SIZE)
    with Client(server.address) as client:
        way = lenet.way_of(by, network, client)
        losses = list(lenet.steps(way, optimizer, lenet.Digits(learnt.images[few].to(dtype), learnt.labels[few])))
    assert len(losses) == steps
    return start, [parameter.detach() for parameter in network.parameters()]
