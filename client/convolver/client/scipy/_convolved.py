"""Arrays of any number of dimensions, as the service takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convolver.client._default_client import default_client
from convolver.core.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.client import Client
    from convolver.core.parameters import Parameters
    from convolver.core.tensors import Array

    Pairs = Sequence[tuple[int, int]]

SPATIAL = 3
"""Dimensions in which the service convolves, at most."""


def convolved(client: Client | None, channels: Array, weight: Array, padding: Pairs, parameters: Parameters) -> Array:
    """The convolution (O, *out) of `channels` (C, *S) with `weight` (O, C/groups, *K); one call to the service.

    Where there are more than three dimensions, those in which the kernel has length 1 become the batch.
    Raises Unsupported where that leaves more than three.
    """
    if weight.ndim == 2:
        return convolved(client, channels[..., None], weight[..., None], [(0, 0)], parameters)[..., 0]
    folded = _folded(weight.shape[2:])
    batch = np.moveaxis(channels, [1 + axis for axis in folded], range(len(folded)))
    lead = batch.shape[: len(folded)]
    caller = default_client() if client is None else client
    given: Parameters = {**parameters, "padding": [pair for axis, pair in enumerate(padding) if axis not in folded]}
    output: Array = caller.convolve(
        batch.reshape(-1, *batch.shape[len(folded) :]),
        weight.squeeze(tuple(2 + axis for axis in folded)),
        **given,
    )
    return np.moveaxis(output.reshape(*lead, *output.shape[1:]), range(len(folded)), [1 + axis for axis in folded])


def _folded(kernel: tuple[int, ...]) -> list[int]:
    """The axes that must become the batch."""
    single = [axis for axis, length in enumerate(kernel) if length == 1]
    wide = len(kernel) - len(single)
    if wide > SPATIAL:
        raise Unsupported(f"kernel {kernel} is longer than 1 in {wide} dimensions; at most {SPATIAL} are supported")
    return single[: max(0, len(kernel) - SPATIAL)]
