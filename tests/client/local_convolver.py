"""A stand-in for the service, written as the definition reads: pad, then add up shifted copies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from typing import Unpack

    from numpy.typing import NDArray

    from convolver.core.parameters import Parameters

NUMPY_MODES: dict[str, Any] = {"zeros": "constant", "replicate": "edge", "circular": "wrap"}


@dataclass(frozen=True)
class LocalPlan:
    macs: int
    output_shape: tuple[int, ...]
    backend: str = "local"
    algorithm: str = "direct"


@dataclass(frozen=True)
class LocalAnswer:
    output: NDArray[Any]
    plan: LocalPlan


@dataclass
class LocalConvolver:
    """Keeps the shapes of the inputs it was sent."""

    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def run(self, input: NDArray[Any], weight: NDArray[Any], /, **parameters: Unpack[Parameters]) -> LocalAnswer:
        assert input.dtype == weight.dtype
        self.shapes.append(input.shape)
        kernel = weight.shape[2:]
        taps = np.flip(weight, tuple(range(2, weight.ndim))) if parameters.get("flip") else weight
        padded = _padded(input, kernel, parameters)
        sizes = [have - length + 1 for have, length in zip(padded.shape[2:], kernel, strict=True)]
        output = np.zeros((len(input), len(weight), *sizes), input.dtype)
        for offset in np.ndindex(*kernel):
            window = tuple(slice(start, start + size) for start, size in zip(offset, sizes, strict=True))
            column = taps[(slice(None), 0, *offset)].reshape(1, -1, *[1] * len(kernel))
            output += column * padded[(slice(None), slice(0, 1), *window)]
        return LocalAnswer(output, LocalPlan(output.size * int(np.prod(kernel)), output.shape))


def _padded(array: NDArray[Any], kernel: tuple[int, ...], parameters: Parameters) -> NDArray[Any]:
    padding: Any = parameters["padding"]
    if isinstance(padding, str):
        padding = [_pair(padding, length) for length in kernel]
    mode = parameters["padding_mode"]
    value = {"constant_values": parameters.get("padding_value", 0)} if mode in ("zeros", "constant") else {}
    return np.pad(array, [(0, 0), (0, 0), *padding], mode=NUMPY_MODES.get(mode, mode), **value)


def _pair(word: str, length: int) -> tuple[int, int]:
    if word == "same":
        return (length - 1) // 2, length // 2
    return (length - 1, length - 1) if word == "full" else (0, 0)
