"""Calls of AsyncClient from tests that are no coroutines."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from tests.contract import IMAGE, KERNEL

from convolver.client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

ROW, PAIR = np.arange(12, dtype=np.float32).reshape(2, 2, 3), np.ones((2, 2, 2), np.float32)
VOLUME, CUBE = np.arange(27, dtype=np.float32).reshape(1, 1, 3, 3, 3), np.ones((1, 1, 2, 2, 2), np.float32)
BIAS = np.ones(2, np.float32)

CALLS: dict[str, Callable[[Any], Any]] = {
    "address": lambda client: client.address,
    "conv1d": lambda client: client.conv1d(ROW, PAIR, BIAS, 1, 1, 2),
    "conv2d": lambda client: client.conv2d(IMAGE, KERNEL, None, 2, "same"),
    "conv3d": lambda client: client.conv3d(VOLUME, CUBE, dilation=2, padding="full"),
    "conv_transpose1d": lambda client: client.conv_transpose1d(ROW, PAIR, BIAS, 2, 0, 1),
    "conv_transpose2d": lambda client: client.conv_transpose2d(IMAGE, KERNEL, stride=2),
    "conv_transpose3d": lambda client: client.conv_transpose3d(VOLUME, CUBE, activation="relu"),
    "convolve": lambda client: client.convolve(IMAGE, KERNEL, flip=True),
    "gradients": lambda client: client.gradients(ROW, PAIR, PAIR, wrt=["weight"], bias=True, stride=1),
    "info": lambda client: client.info(),
    "plan": lambda client: client.plan((1, 1, 3, 3), (1, 1, 2, 2), "float64", bias=True),
    "run": lambda client: client.run(ROW, PAIR, padding=1),
}
"""A call of each method. All numbers are small integers, so every sum is exact."""

REPORTED = {"gradients", "run"}
"""Those whose results end with a report, which has times."""


def asynchronously(address: str, calls: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """What the calls give with a client in a loop of their own."""

    async def main() -> T:
        async with AsyncClient(address) as client:
            return await calls(client)

    return asyncio.run(main())
