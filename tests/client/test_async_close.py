"""What is left where an AsyncClient is closed while calls are in flight, or after they were cancelled."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakSet

import grpc
import numpy as np
import pytest
from tests.client.async_calls import asynchronously
from tests.client.shared_memory_calls import WEIGHT, numbers
from tests.server.hold_calls import shared, until_nothing_is_shared
from tests.server.layer_calls import metric
from tests.wait import until_in_loop

from convolver.client import AsyncClient, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

REPOSITORY = Path(__file__).parent.parent.parent

BIG, WIDE = np.ones((4, 1, 1000, 1000), np.float32), np.ones((1, 1, 101, 101), np.float32)
"""Seconds of direct sums, in blocks of a fraction of one, of which most are never done."""


@pytest.fixture(scope="module")
def sharing(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve("--backend=reference", "--shared-memory")


LEAVING = """
import asyncio, sys
import numpy as np
from contextlib import suppress
from tests.client.shared_memory_calls import WEIGHT, numbers
from convolver.client import AsyncClient

async def leave(seconds, given, calls):
    async with AsyncClient(sys.argv[1]) as client:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(client.convolve(given, WEIGHT) for _ in range(calls)))

several, one = numbers((4, 3, 200, 200)), numbers((1, 3, 800, 800))
asyncio.run(leave(60, several, 4))
for part in np.random.default_rng(0).uniform(0, 1, 100):
    asyncio.run(leave(0.01 * part, several, 4))
    asyncio.run(leave(0.05 * part, one, 1))
"""


def errors_logged(address: str) -> int:
    """Errors of asyncio's for loops that ended just after their client."""
    command = [sys.executable, "-c", LEAVING, address]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr.count("Exception in callback")


def test_grpc_has_told_all_of_a_closed_client(sharing: RunningServer) -> None:
    """Of calls that were cancelled, and of the lease: without any wait there are 20 to 40. Nobody can know of all that
    gRPC has still to tell.
    """
    assert errors_logged(sharing.address) <= 5
    until_nothing_is_shared(sharing)


def test_grpc_has_told_all_of_one_that_sent_chunks(server: RunningServer) -> None:
    assert errors_logged(server.address) <= 5


def test_a_closed_client_leaves_no_channels(sharing: RunningServer) -> None:
    """With one that is alive the process could not be forked."""

    def channels() -> WeakSet[grpc.aio.Channel]:
        gc.collect()
        return WeakSet(one for one in gc.get_objects() if issubclass(type(one), grpc.aio.Channel))

    before = channels()
    asynchronously(sharing.address, lambda client: client.convolve(numbers(), WEIGHT))
    assert channels() <= before


def test_calls_in_flight_when_the_client_is_closed_are_unavailable(sharing: RunningServer) -> None:
    random, given = np.random.default_rng(0), numbers()

    async def calls(client: AsyncClient) -> list[object]:
        await client.convolve(given, WEIGHT)
        tasks = [asyncio.create_task(client.convolve(given, WEIGHT)) for _ in range(6)]
        await asyncio.sleep(random.uniform(0, 0.02))
        await client.close()
        return [*await asyncio.gather(*tasks, return_exceptions=True)]

    outcomes = [outcome for _ in range(20) for outcome in asynchronously(sharing.address, calls)]
    assert {type(outcome) for outcome in outcomes} <= {ServiceUnavailable, np.ndarray}
    assert ServiceUnavailable in map(type, outcomes)


def test_a_close_that_is_cancelled_has_closed_all(sharing: RunningServer) -> None:
    async def calls(client: AsyncClient) -> None:
        await client.convolve(numbers(), WEIGHT)
        slow = asyncio.create_task(client.conv2d(BIG, WIDE, algorithm="direct"))
        await until_in_loop(lambda: metric(sharing, "convolver_in_flight") == 1, "a call in flight")
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(ServiceUnavailable, match="the client was closed"):
            await slow
        await asyncio.wait([closing])
        assert closing.cancelled()
        await until_in_loop(lambda: shared(sharing)[0] == 0, "nothing to be shared")

    asynchronously(sharing.address, calls)
