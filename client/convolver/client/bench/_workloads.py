"""What is measured, as data."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Weights = Literal["layers", "inline"]
"""Whether weights stay on the server, or travel with each request."""

CALLERS = (1, 4, 16, 64)
"""How many call at a time, each one request after the other."""

IN_FLIGHT = 1 << 30
"""Bytes of requests and answers that may be on their way together; each end holds several copies of them."""

ITEM_SIZE = 4
"""Bytes of a float32, in which everything is measured."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One convolution in float32; padding and stride are the same in every dimension."""

    name: str
    input: tuple[int, ...]
    weight: tuple[int, ...]
    padding: int
    stride: int = 1
    groups: int = 1

    @property
    def output(self) -> tuple[int, ...]:
        """The output's shape."""
        sizes = zip(self.input[2:], self.weight[2:], strict=True)
        spatial = ((size + 2 * self.padding - kernel) // self.stride + 1 for size, kernel in sizes)
        return (self.input[0], self.weight[0], *spatial)

    @property
    def bytes(self) -> int:
        """Of the input and the output."""
        return ITEM_SIZE * (prod(self.input) + prod(self.output))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("tiny", (1, 3, 32, 32), (16, 3, 3, 3), padding=1),
        Workload("stem", (1, 3, 224, 224), (64, 3, 7, 7), padding=3, stride=2),
        Workload("feature-map", (1, 64, 56, 56), (64, 64, 3, 3), padding=1),
        Workload("depthwise", (8, 128, 56, 56), (128, 1, 3, 3), padding=1, groups=128),
        Workload("picture", (1, 3, 1024, 1024), (8, 3, 3, 3), padding=1),
        Workload("big", (4, 3, 1024, 1024), (8, 3, 3, 3), padding=1),
        Workload("volume", (1, 1, 128, 128, 128), (8, 1, 5, 5, 5), padding=2),
        Workload("fir", (1, 1, 1 << 20), (1, 1, 1025), padding=512),
    )
}
"""By name: from a request that is all overhead to those that are all bytes or all arithmetic."""


def callers_for(workload: Workload, asked: Sequence[int]) -> dict[int, list[int]]:
    """How many callers run, and the numbers asked for that they stand for: fewer, where more would hold above IN_FLIGHT
    bytes together.
    """
    most = max(1, IN_FLIGHT // workload.bytes)
    found: dict[int, list[int]] = {}
    for number in sorted(set(asked)):
        found.setdefault(min(number, most), []).append(number)
    return found
