"""How the reference will pool, decided from integers, and the bytes that each back end takes for it: one place for the
plan and for the run.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import NamedTuple

from convolver.core import dtypes
from convolver.core.pooling import Pooling

BLOCK_BYTES = 1 << 20
"""What the reference pools at one time: about a second-level cache."""

INDEX_BYTES = 64
"""Where an adaptive window begins and ends, with what comes between."""

BUFFER_BYTES = 256 << 10
"""What NumPy converts types in, and Python's own objects."""


class Block(NamedTuple):
    """`items` of the batch by `channels`."""

    items: int
    channels: int


def order(pooling: Pooling) -> tuple[int, ...]:
    """The spatial dimensions as the reference pools them, one after the other. Means: those that shrink most come
    first, so that nothing between is larger than both input and output. Maxima: from the last, so that the first of
    equal elements in row-major order is the first in each dimension.
    """
    if pooling.kind == "max":
        return tuple(reversed(range(pooling.ndim)))
    return tuple(sorted(range(pooling.ndim), key=lambda d: pooling.output_size[d] / pooling.input_size[d]))


def stages(pooling: Pooling) -> list[int]:
    """Elements of one channel of one item: the input's, then those after each dimension of the order."""
    size, elements = list(pooling.input_size), [prod(pooling.input_size)]
    for d in order(pooling):
        size[d] = pooling.output_size[d]
        elements.append(prod(size))
    return elements


def block(pooling: Pooling) -> Block:
    """What the reference pools at one time. Channels that stand last are not torn apart."""
    batch, channels = pooling.canonical_input[:2]
    fit = max(1, BLOCK_BYTES // (max(stages(pooling)) * pooling.accumulator.itemsize))
    if pooling.layout == "channels_first" and fit < channels:
        return Block(1, fit)
    return Block(max(1, min(batch, fit // channels)), channels)


def workspace_bytes(pooling: Pooling, backend: str) -> int:
    """Bytes that `pool` allocates on that back end beside input and output, at most."""
    size = pooling.accumulator.itemsize
    if backend != "reference":
        return prod(pooling.input_shape) * size * _copies(pooling) + prod(pooling.output.shape) * (2 * size + 8)
    held = [_widened(pooling) * stages(pooling)[0], *stages(pooling)[1:]]
    return prod(block(pooling)) * size * _passed(pooling, held) + _buffers(pooling.output_size)


def gradient_workspace_bytes(pooling: Pooling, backend: str) -> int:
    """The same for `pool_gradient`, beside the input and both gradients."""
    size = pooling.accumulator.itemsize
    if backend != "reference":
        copied = prod(pooling.input_shape) * size * (_copies(pooling) + 2)
        return copied + prod(pooling.output.shape) * (3 * size + 8)
    sizes, widened = stages(pooling), _widened(pooling)
    if pooling.kind != "max":
        elements = _passed(pooling, sizes[::-1]) + widened * sizes[-1]
        return prod(block(pooling)) * size * elements + _buffers(pooling.input_size)
    elements = sum(sizes[1:]) + 3 * max(sizes) + widened * (sizes[0] + sizes[-1])
    marks = 4 * (1 if max(pooling.kernel) < 256 else 4) * max(sizes)  # which part has the largest element
    return prod(block(pooling)) * (size * elements + marks) + _buffers(())


def _buffers(indexed: tuple[int, ...]) -> int:
    return BUFFER_BYTES + INDEX_BYTES * max(indexed, default=0)


def _widened(pooling: Pooling) -> bool:
    return dtypes.TABLE[pooling.dtype] is not pooling.accumulator


def _copies(pooling: Pooling) -> int:
    """Of the input that torch makes: in its accumulator's type, and contiguous for what it cannot read otherwise."""
    return _widened(pooling) + (pooling.layout == "channels_last" or pooling.accumulator.kind == "complex")


def _passed(pooling: Pooling, sizes: list[int]) -> int:
    """The most elements that stand at one time on the way through these; adaptive windows are read by index."""
    return max(before + (1 if pooling.kernel else 2) * after for before, after in pairwise(sizes))
