"""Calls of AsyncClient, its layers and its stacks from tests that are no coroutines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tests.contract import IMAGE, KERNEL

from convolver.client import AsyncClient, Client, Conv, Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

ROW, PAIR = np.arange(12, dtype=np.float32).reshape(2, 2, 3), np.ones((2, 2, 2), np.float32)
VOLUME, CUBE = np.arange(27, dtype=np.float32).reshape(1, 1, 3, 3, 3), np.ones((1, 1, 2, 2, 2), np.float32)
BIAS = np.ones(2, np.float32)

STAYING = Client("127.0.0.1:1").layer(PAIR, BIAS).digest
"""A layer that is to be put before each of CALLS."""

CALLS: dict[str, Callable[[Any], Any]] = {
    "address": lambda client: client.address,
    "conv1d": lambda client: client.conv1d(ROW, PAIR, BIAS, 1, 1, 2),
    "conv2d": lambda client: client.conv2d(IMAGE, KERNEL, None, 2, "same"),
    "conv3d": lambda client: client.conv3d(VOLUME, CUBE, dilation=2, padding="full"),
    "conv_transpose1d": lambda client: client.conv_transpose1d(ROW, PAIR, BIAS, 2, 0, 1),
    "conv_transpose2d": lambda client: client.conv_transpose2d(IMAGE, KERNEL, stride=2),
    "conv_transpose3d": lambda client: client.conv_transpose3d(VOLUME, CUBE, activation="relu"),
    "convolve": lambda client: client.convolve(IMAGE, KERNEL, flip=True),
    "delete_layer": lambda client: client.delete_layer(STAYING),
    "gradients": lambda client: client.gradients(ROW, PAIR, PAIR, wrt=["weight"], bias=True, stride=1),
    "held_layer": lambda client: client.held_layer(STAYING),
    "info": lambda client: client.info(),
    "layer": lambda client: client.layer(PAIR, BIAS, padding=1)(ROW),
    "layers": lambda client: client.layers(),
    "plan": lambda client: client.plan((1, 1, 3, 3), (1, 1, 2, 2), "float64", bias=True),
    "run": lambda client: client.run(ROW, PAIR, padding=1),
    "stack": lambda client: client.stack([Conv(KERNEL), Pool("max", 2)])(IMAGE),
}
"""A call of each method. All numbers are small integers, so every sum is exact."""

CALLS_OF_BOTH: dict[str, Callable[[Any], Any]] = {
    "__call__": lambda layers: layers(ROW),
    "gradients": lambda layers: layers.gradients(ROW, PAIR, wrt=["weight"], bias=True),
    "map": lambda layers: layers.map([ROW, 2 * ROW], in_flight=1),
    "plan": lambda layers: layers.plan(ROW.shape),
    "run": lambda layers: layers.run(ROW),
}
"""A call of each method that layers and stacks have; a layer also has `put`. Map gives a generator."""


def layer_of(client: Any) -> Any:  # noqa: ANN401 - of either colour
    """A layer for CALLS_OF_BOTH."""
    return client.layer(PAIR, BIAS)


def stack_of(client: Any) -> Any:  # noqa: ANN401 - of either colour
    """A stack for CALLS_OF_BOTH."""
    return client.stack([Pool("max", 1), layer_of(client), Conv(np.ones((2, 2, 1), np.float32))])


REPORTED = {"gradients", "run"}
"""Those whose results end with a report, which has times."""


def asynchronously(address: str, calls: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """What the calls give with a client in a loop of their own."""

    async def main() -> T:
        async with AsyncClient(address) as client:
            return await calls(client)

    return asyncio.run(main())
