"""Stacks in files and arrays of frames, as `convolver map` takes them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from convolver.client import Client, Conv, Pool

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

RNG = np.random.default_rng(7)


def normal(*shape: int) -> Array:
    return RNG.standard_normal(shape, np.float32)


def write_stack(folder: Path, ndim: int = 2, **parameters: Any) -> list[Conv | Pool]:  # noqa: ANN401 - of layers
    """`stack.json` and its weights, `w.npz`: a convolution, a maximum over 2, another convolution. The same layers."""
    weights: dict[str, Any] = {"a": normal(4, 3, *[3] * ndim), "bias": normal(4), "b": normal(2, 4, *[1] * ndim)}
    if parameters.get("layout") == "channels_last":
        weights["a"], weights["b"] = (np.moveaxis(weights[name], (0, 1), (-1, -2)).copy() for name in "ab")
    np.savez(folder / "w.npz", **weights)
    first: dict[str, Any] = {"padding": "same", "activation": "relu", **parameters}
    written = [
        {"kind": "conv", "weight": "a", "bias": "bias", **first},
        {"kind": "max", "kernel": 2},
        {"kind": "conv", "weight": "b", **parameters},
    ]
    described = {"input": [1, 3, *[8] * ndim], "weights": "w.npz", "layers": written}
    (folder / "stack.json").write_text(json.dumps(described))
    return [Conv(weights["a"], weights["bias"], **first), Pool("max", 2), Conv(weights["b"], **parameters)]


def write_scaling(folder: Path, factor: int, dtype: type[np.generic]) -> None:
    """`stack.json` and `w.npz`: one convolution of images of one channel, by a kernel of one number."""
    np.savez(folder / "w.npz", w=np.full((1, 1, 1, 1), factor, dtype))
    layers = [{"kind": "conv", "weight": "w"}]
    (folder / "stack.json").write_text(json.dumps({"input": [1, 1, 8, 8], "weights": "w.npz", "layers": layers}))


def frame_by_frame(client: Client, layers: list[Conv | Pool], frames: Array) -> Array:
    stack = client.stack(layers)
    return np.stack([stack(frame) for frame in frames])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
