"""Which connections the leases of shared memory take: their own, so that calls have theirs to themselves."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.client.colours import colours
from tests.client.shared_memory_calls import WEIGHT, numbers, travelled
from tests.server.hold_calls import shared, until_nothing_is_shared

from convolver.client import AsyncClient, Client
from convolver.client._shared_memory_async import AsyncSharedMemory
from convolver.client._shared_memory_sync import SharedMemory

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.colours import Called
    from tests.conftest import RunningServer

pytestmark = pytest.mark.usefixtures("patient_offers")  # the tests see which way requests take

CROWD, SECONDS = 5, 20.0


def sharing(serve: Callable[..., RunningServer], streams: int) -> RunningServer:
    return serve("--backend=reference", "--shared-memory", f"--max-concurrent-streams={streams}")


@pytest.fixture
def expected(client: Client) -> np.ndarray[Any, Any]:
    output: np.ndarray[Any, Any] = client.convolve(numbers(), WEIGHT)
    return output


def blocking_crowd(running: RunningServer, expected: np.ndarray[Any, Any]) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(running.address, timeout=SECONDS)) for _ in range(CROWD)]
        for client in [*clients, clients[0]]:
            np.testing.assert_array_equal(client.convolve(numbers(), WEIGHT), expected)
        assert shared(running)[0] == 2 * CROWD


async def asynchronous_crowd(running: RunningServer, expected: np.ndarray[Any, Any]) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(running.address, timeout=SECONDS)) for _ in range(CROWD)]
        for client in [*clients, clients[0]]:
            np.testing.assert_array_equal(await client.convolve(numbers(), WEIGHT), expected)
        assert shared(running)[0] == 2 * CROWD


def test_many_clients_of_a_process_leave_its_connection_to_calls(
    serve: Callable[..., RunningServer], expected: np.ndarray[Any, Any]
) -> None:
    running = sharing(serve, 2)
    blocking_crowd(running, expected)
    until_nothing_is_shared(running)
    asyncio.run(asynchronous_crowd(running, expected))
    until_nothing_is_shared(running)


@colours
def test_a_connection_of_one_call_is_enough(
    called: Called, serve: Callable[..., RunningServer], expected: np.ndarray[Any, Any]
) -> None:
    running = sharing(serve, 1)

    def call(client: Client) -> object:
        return client.convolve(numbers(), WEIGHT, timeout=SECONDS)

    outputs: list[object] = []
    assert travelled(running, lambda: outputs.append(called(running.address, call))) < 5000
    np.testing.assert_array_equal(outputs[0], expected)
    until_nothing_is_shared(running)


def test_a_lease_in_the_place_of_another_ends_that(serve: Callable[..., RunningServer]) -> None:
    memory, running = SharedMemory(), sharing(serve, 8)
    memory.address = running.address
    with grpc.insecure_channel(running.address) as one, grpc.insecure_channel(running.address) as other:
        first, second = memory._opened(one), memory._opened(other)  # noqa: SLF001 - as calls by other channels do
        assert (first.lease.has_ended, memory._opened(other)) == (True, second)  # noqa: SLF001 - the same
        memory.close()
        assert memory._held(other, [], 1.0) is None  # noqa: SLF001 - a call that waited for the lock
        assert memory._stream is second  # noqa: SLF001 - nothing was opened for it


def test_so_does_one_of_the_other_colour(serve: Callable[..., RunningServer]) -> None:
    address = sharing(serve, 8).address

    async def main() -> None:
        memory = AsyncSharedMemory()
        memory.address = address
        async with grpc.aio.insecure_channel(address) as one, grpc.aio.insecure_channel(address) as other:
            first, second = memory._opened(one), memory._opened(other)  # noqa: SLF001 - as calls by other channels do
            assert (first.lease.has_ended, memory._opened(other)) == (True, second)  # noqa: SLF001 - the same
            memory.close()
            assert await memory._held(other, [], 1.0) is None  # noqa: SLF001 - a call that waited for the lock
            assert memory._stream is second  # noqa: SLF001 - nothing was opened for it
            await memory.ended()
            await first.ended()

    asyncio.run(main())
