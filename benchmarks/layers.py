"""The reference back end against local torch, on eight layers and equal threads: python -m benchmarks.layers."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from benchmarks._measure import RESULTS, Table, duration, interleave, machine, medians, write
from convolver.core.backends import available
from convolver.core.choose import choose
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Tensor
from convolver.core.parse import parse

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

THREADS = 2
"""Of both; NumPy's come from benchmarks/__init__.py."""

REST = 0.02
"""Seconds before a turn, in which the threads of the other library stop spinning in case more work follows."""


class Layer(NamedTuple):
    """Shapes and parameters, in torch's words."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    parameters: dict[str, Any] = {}  # noqa: RUF012 - a NamedTuple's default, never written to


LAYERS = {
    "stem, 7x7, stride 2": Layer((1, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
    "3x3 at 56": Layer((1, 64, 56, 56), (64, 64, 3, 3), {"padding": 1}),
    "3x3 at 14": Layer((1, 256, 14, 14), (256, 256, 3, 3), {"padding": 1}),
    "1x1": Layer((1, 256, 56, 56), (64, 256, 1, 1)),
    "1-D, 9 taps": Layer((8, 64, 1024), (64, 64, 9), {"padding": 4}),
    "3-D, 3x3x3": Layer((1, 16, 16, 56, 56), (16, 16, 3, 3, 3), {"padding": 1}),
    "large, 15x15": Layer((1, 8, 128, 128), (8, 8, 15, 15), {"padding": 7}),
    "depthwise, 3x3": Layer((8, 128, 56, 56), (128, 1, 3, 3), {"padding": 1, "groups": 128}),
}
FUNCTIONS: dict[int, Callable[..., torch.Tensor]] = {
    3: torch.nn.functional.conv1d,
    4: torch.nn.functional.conv2d,
    5: torch.nn.functional.conv3d,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of layers.json and layers.md")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each, of three timed calls")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    seconds = {name: _compared(layer, options.rounds) for name, layer in LAYERS.items()}
    ratios = {name: row["reference"] / row["torch"] for name, row in seconds.items()}
    summary = {"geometric mean": geometric_mean(ratios.values()), "depthwise": ratios["depthwise, 3x3"]}
    payload = {
        "machine": machine("numpy", "torch"),
        "threads": THREADS,
        "seconds": seconds,
        "ratios": ratios,
        **summary,
    }
    write("layers", payload, [_table(seconds, ratios), _summary(summary)], options.out)


def _compared(layer: Layer, rounds: int) -> dict[str, float]:
    rng = np.random.default_rng(0)
    image, weight = (rng.standard_normal(shape, np.float32) for shape in layer[:2])
    tensors = torch.from_numpy(image), torch.from_numpy(weight)
    backend = available("reference", THREADS)[0]
    operation = parse(Tensor("float32", layer.input), Tensor("float32", layer.weight), None, layer.parameters)  # type: ignore[arg-type]  # of any kind
    execution = Execution(backend="reference", algorithm="direct")
    plan = choose(Geometry.of(operation), execution, [backend.capability])
    prepared = backend.prepare(plan, weight, None)

    def local() -> torch.Tensor:
        with torch.inference_mode():
            return FUNCTIONS[image.ndim](*tensors, **layer.parameters)

    np.testing.assert_allclose(backend.run(plan, prepared, image).output, local().numpy(), rtol=1e-4, atol=1e-3)
    return _timed({"reference": lambda: backend.run(plan, prepared, image), "torch": local}, rounds)


def _timed(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Medians in seconds of calls in turns, each turn after a rest and two calls that are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            time.sleep(REST)
            seconds[name] += interleave({name: call}, repeats=3)[name]
    return medians(seconds)


def _table(seconds: dict[str, dict[str, float]], ratios: dict[str, float]) -> Table:
    rows = [
        [
            name,
            "x".join(map(str, LAYERS[name].input)),
            str(LAYERS[name].weight[0]),
            *(duration(value) for value in row.values()),
            f"{ratios[name]:.2f}",
        ]
        for name, row in seconds.items()
    ]
    title = f"A layer, float32, direct, {THREADS} threads, median"
    return Table(title, ("layer", "input", "kernels", "reference", "torch", "reference / torch"), rows)


def _summary(summary: dict[str, float]) -> Table:
    return Table("Reference / torch", ("figure", "times"), [[name, f"{value:.2f}"] for name, value in summary.items()])


if __name__ == "__main__":
    main()
