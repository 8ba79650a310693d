"""Cut what is to be filtered into pieces that fit a call each: several planes together, or bands of a single one.

A photograph of 24 megapixels has 96 MB a channel in float32, more than a message may. Bands overlap by the kernel.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from convolver.core.padding import forward_word

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from convolver.client.pictures._choices import PaddingMode, PicturePadding

    Pairs = list[tuple[int, int]]

PIECE_BYTES: Final = 32 * 2**20
"""Of a call's samples or results, whichever are more."""


class Band(NamedTuple):
    """Rows of a plane (pages of a volume) and the padding that gives their part of the result."""

    rows: NDArray[np.intp]
    padding: PicturePadding | Pairs


def plane_groups(count: int, plane_bytes: int) -> Iterator[slice]:
    """Slices of `count` planes, in order, each of as many as one call takes and at least of one."""
    step = max(1, PIECE_BYTES // max(1, plane_bytes))
    return (slice(start, start + step) for start in range(0, count, step))


def bands(
    shape: tuple[int, ...], kernel: tuple[int, ...], padding: PicturePadding, mode: PaddingMode, itemsize: int
) -> list[Band]:
    """Bands along the first axis of `shape` whose results, one after another, are the result of the whole.

    Each is at least twice as long as the kernel: what a padding mode reads at an edge lies in the band at that edge.

    Args:
        shape: (rows, columns) or (pages, rows, columns).
        kernel: The kernel's shape.
        padding: In a word.
        mode: In `circular` a band takes the rows of the opposite edge along.
        itemsize: Bytes of a sample, times the filters.
    """
    pairs = [forward_word(padding, size, 1, length) for size, length in zip(shape, kernel, strict=True)]
    begin, end = pairs[0]
    outputs = shape[0] + begin + end - kernel[0] + 1
    number = min(-(-prod(shape) * itemsize // PIECE_BYTES), outputs // (2 * kernel[0]))
    if number <= 1:
        return [Band(np.arange(shape[0]), padding)]
    edges = [outputs * i // number for i in range(number + 1)]
    ranges = ((first - begin, last - begin + kernel[0] - 1) for first, last in pairwise(edges))
    return [_band(first, last, shape[0], pairs[1:], mode) for first, last in ranges]


def _band(first: int, last: int, size: int, others: Pairs, mode: PaddingMode) -> Band:
    """The band of rows `first` to `last` (excluded) of a plane of `size` rows, both of which may lie beyond it."""
    rows = np.arange(first, last)
    if mode == "circular":
        return Band(rows % size, [(0, 0), *others])
    return Band(rows[(rows >= 0) & (rows < size)], [(max(0, -first), max(0, last - size)), *others])


def centred(plane: NDArray[Any], kernel: tuple[int, ...], padding: PicturePadding) -> NDArray[Any]:
    """The part of `plane` under the kernel's centre: `valid` cuts it, `full` extends it by repeating its edge."""
    for axis, length in enumerate(kernel):
        size = plane.shape[axis]
        begin, end = forward_word(padding, size, 1, length)
        start = (length - 1) // 2 - begin
        positions = np.arange(start, start + size + begin + end - length + 1)
        plane = plane.take(positions.clip(0, size - 1), axis)
    return plane
