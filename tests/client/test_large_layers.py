"""Layers that are larger than a message of their server may be, in both colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.async_calls import asynchronously

from convolver.client import AsyncClient, Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    Array = NDArray[Any]

WEIGHT = np.ones((4100, 1, 32, 33), np.float32)
FRAME = np.ones((1, 1, 32, 33), np.float32)
"""A weight of 17 MB, two of which are multiplied below, and frames of 4 KB."""


@pytest.fixture(scope="module")
def two(serve: Callable[..., RunningServer]) -> list[RunningServer]:
    """Servers that take messages of 8 MB."""
    return [serve("--backend=reference", "--max-message=8MiB") for _ in range(2)]


def calls_of(client: Client, factor: int) -> list[Array]:
    layer = client.layer(factor * WEIGHT)
    scaled = client.stack([layer, client.layer(np.full((1, 4100, 1, 1), 2, np.float32))])
    outputs = [layer(FRAME)[:, :1], layer(2 * FRAME)[:, :1], *(one[:, :1] for one in layer.map([FRAME] * 3))]
    client.delete_layer(layer.digest)
    outputs += [one[:, :1] for one in layer.map([FRAME] * 3)]
    client.delete_layer(layer.digest)
    grad_input = layer.gradients(FRAME, np.ones((1, 4100, 1, 1), np.float32), wrt="input").input
    return [*outputs, scaled(FRAME) / 8200, grad_input[..., 0, 0] / 4100]


async def async_calls_of(client: AsyncClient, factor: int) -> list[Array]:
    layer = client.layer(factor * WEIGHT)
    outputs = [(await layer(FRAME))[:, :1], (await layer(2 * FRAME))[:, :1]]
    outputs += [one[:, :1] async for one in layer.map([FRAME] * 3)]
    await client.delete_layer(layer.digest)
    outputs += [one[:, :1] async for one in layer.map([FRAME] * 3)]
    return outputs


@pytest.mark.parametrize("count", [1, 2])
def test_they_go_ahead_in_pieces(two: list[RunningServer], count: int) -> None:
    address, size = ",".join(running.address for running in two[:count]), FRAME.size
    with Client(address) as client:
        found = calls_of(client, count)
    expected = [count * size * factor for factor in (1, 2, 1, 1, 1, 1, 1, 1, 1)]
    np.testing.assert_allclose([one.item() for one in found], [*expected, count], rtol=1e-6)
    found = asynchronously(address, lambda client: async_calls_of(client, 2 + count))
    expected = [(2 + count) * size * factor for factor in (1, 2, 1, 1, 1, 1, 1, 1)]
    np.testing.assert_array_equal([one.item() for one in found], expected)
