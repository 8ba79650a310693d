"""Layers that stay, map and stacks, against the same without them: python -m benchmarks.stay."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from examples import lenet

from benchmarks import echo
from benchmarks._measure import RESULTS, Table, duration, interleave, machine, medians, write
from benchmarks.remote import child
from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Figures = dict[str, float]

FRAMES = 500
"""Of one round of the comparison of map with a loop."""

BATCHES = (16, 256)
"""Pictures of a step: the example's, which has few of them in all, and the book's."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stay", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of stay.json and stay.md")
    parser.add_argument("--threads", type=int, default=2, help="compute threads, here and there")
    parser.add_argument("--rounds", type=int, default=300, help="calls of the layer; the others in proportion")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        port = int(stack.enter_context(child("-m", "benchmarks.echo")).split()[0])
        flags = ("--listen", "127.0.0.1:0", "--http-listen", "none", "--exit-on-eof", "--threads", str(options.threads))
        words = stack.enter_context(child("-m", "convolver.server", *flags)).split()
        address = words[words.index("on") + 1]
        client = stack.enter_context(Client(address))
        figures = {
            "layer": _layer(client, echo.caller(port), options.rounds),
            "map": _map(client, max(3, options.rounds // 20)),
            **{f"lenet {size}": _lenet(address, max(3, options.rounds // 30), size) for size in BATCHES},
        }
    lenets = [_lenet_table(figures[f"lenet {size}"], size) for size in BATCHES]
    tables = [_layer_table(figures["layer"]), _map_table(figures["map"]), *lenets]
    write("stay", {"machine": machine("grpcio", "numpy", "torch"), "seconds": figures}, tables, options.out)


def _layer(client: Client, echoed: Callable[[bytes], bytes], rounds: int) -> Figures:
    """1x256x14x14 -> 256, 3x3: 200 KB in, 200 KB out, 2.4 MB of weights."""
    x, weight = _drawn(1, 256, 14, 14), _drawn(256, 256, 3, 3)
    tensors, data = (torch.from_numpy(x), torch.from_numpy(weight)), x.tobytes()
    layer = client.layer(weight, padding=1)

    def local() -> torch.Tensor:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(*tensors, padding=1)

    np.testing.assert_allclose(layer(x), local().numpy(), rtol=1e-3, atol=1e-3)
    candidates = {
        "local torch": local,
        "echo": lambda: echoed(data),
        "echo, then local torch": lambda: (echoed(data), local()),
        "layer": lambda: layer(x),
        "with the weights": lambda: client.conv2d(x, weight, padding=1),
    }
    return medians(interleave(candidates, rounds, warmup=10))


def _map(client: Client, rounds: int) -> Figures:
    """1x3x32x32 -> 16, 3x3: seconds of FRAMES calls."""
    x, layer = _drawn(1, 3, 32, 32), client.layer(_drawn(16, 3, 3, 3), padding=1)
    frames = [x] * FRAMES
    for one, other in zip(layer.map(frames[:3]), map(layer, frames[:3]), strict=True):
        np.testing.assert_array_equal(one, other)
    candidates = {
        "a loop of calls": lambda: [layer(frame) for frame in frames],
        "map": lambda: list(layer.map(frames)),
    }
    return medians(interleave(candidates, rounds, warmup=1))


def _lenet(address: str, rounds: int, batch: int) -> Figures:
    """An epoch of examples/lenet.py in batches of that size, from the same weights each time."""
    lenet.BATCH_SIZE = batch

    def epoch(by: str) -> Callable[[], object]:
        def learn() -> list[float]:
            torch.manual_seed(0)
            network = lenet.lenet()
            optimizer = torch.optim.SGD(network.parameters(), lenet.LEARNING_RATE, lenet.MOMENTUM)
            return list(lenet.steps(lenet.way_of(by, network, client), optimizer, learnt))

        return learn

    torch.manual_seed(0)
    learnt, _ = lenet.digits()
    with Client(address) as client:
        return medians(interleave({by: epoch(by) for by in ("local", "stack", "layers")}, rounds, warmup=1))


def _drawn(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def _layer_table(figures: Figures) -> Table:
    rows = [[name, duration(seconds), f"{seconds / figures['layer']:.2f}"] for name, seconds in figures.items()]
    both = figures["echo"] + figures["local torch"]
    rows.append(["layer / (echo + local torch)", "", f"{figures['layer'] / both:.2f}"])
    return Table("A call of 1x256x14x14 -> 256, 3x3, median", ("", "seconds", "of the layer's"), rows)


def _map_table(figures: Figures) -> Table:
    rows = [[name, duration(seconds / FRAMES), f"{seconds / figures['map']:.2f}"] for name, seconds in figures.items()]
    return Table("A frame of 1x3x32x32 -> 16, 3x3, median", ("", "seconds", "of map's"), rows)


def _lenet_table(figures: Figures, batch: int) -> Table:
    rows = [[name, duration(seconds), f"{seconds / figures['local']:.2f}"] for name, seconds in figures.items()]
    return Table(
        f"An epoch of LeNet on the digits of scikit-learn (examples/lenet.py), batches of {batch}, median",
        ("", "seconds", "of torch's"),
        rows,
    )


if __name__ == "__main__":
    main()
