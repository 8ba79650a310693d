"""Callers whose deadline passes, or who cancel, while their call waits, comes, computes or goes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import SERVICE, convolution, request
from tests.faults import faulty_server
from tests.faults.calls import CHUNKED, STREAM, UNARY, Call
from tests.faults.faulty_server import CHANNELS
from tests.faults.world import PLAIN, SHARING, Fault, World
from tests.server.chunked_calls import OpenCall, first, more
from tests.server.stream_calls import OpenStream, item, ordinary
from tests.wait import until

from convolver.client import AsyncClient, Client, DeadlineExceeded
from convolver.core.errors import ConvolverError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

SHAPE = (1, CHANNELS, 60, 60)
WEIGHT = np.ones((1, CHANNELS, 3, 3), np.float32)
HANGING = np.full(SHAPE, faulty_server.value_of("hangs"), np.float32)
HEADER = convolution(SHAPE, WEIGHT.shape)
CROWD, TOGETHER = 24, 2
"""Callers who cancel a message each, and how many of them a launch takes: the last ones would wait for seconds."""

MOMENTS = 0.05
"""Seconds within which a caller leaves."""


def has_no_time(world: World, call: Call) -> None:
    """From none at all to nearly enough."""
    timeout = world.random.choice((1e-6, 1e-3, 1e-2, MOMENTS))
    with suppress(DeadlineExceeded):
        np.testing.assert_array_equal(call.make(world.client, timeout), call.expected)


def cancels_a_message(world: World) -> None:
    with grpc.insecure_channel(world.server.address) as channel:
        convolve: Any = channel.unary_unary(f"/{SERVICE}/Convolve")
        calls = [convolve.future(request(HEADER, WEIGHT, HANGING), timeout=60) for _ in range(CROWD)]
        until(lambda: world.in_flight >= 2, "some of them to be computed")
        for call in calls:
            call.cancel()
        assert calls[-1].code() is grpc.StatusCode.CANCELLED  # which waits for the others, of which some may be done


def cancels_chunks(world: World, *messages: bytes) -> None:
    with grpc.insecure_channel(world.server.address) as channel, OpenCall(channel, *messages) as call:
        world.pause(MOMENTS)
        call.call.cancel()


def cancels_a_stream(world: World) -> None:
    with grpc.insecure_channel(world.server.address) as channel, OpenStream(channel) as stream:
        stream.send(*(item(number, HEADER, WEIGHT, HANGING) for number in range(3)), *map(ordinary, range(3, 30)))
        world.pause(MOMENTS)
        stream.call.cancel()


def stops_to_iterate(world: World) -> None:
    outputs = world.client.layer(WEIGHT).map([HANGING * 0] * 50, in_flight=10)
    for _ in range(3):
        assert not next(outputs).any()
    outputs.close()


def cancels_a_task(world: World, shape: tuple[int, ...]) -> None:
    """Of the asynchronous client, by asyncio.timeout."""

    async def call_for_ever(client: AsyncClient) -> None:
        while True:
            await asyncio.gather(*(client.convolve(np.zeros(shape, np.float32), WEIGHT) for _ in range(4)))

    async def leave() -> None:
        async with AsyncClient(world.server.address) as client:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call_for_ever(client), world.random.uniform(0.001, MOMENTS))

    asyncio.run(leave())


def closes_the_client(world: World, call: Call) -> None:
    """While another thread calls."""
    client = Client(world.server.address)
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(call_until_it_fails, client, call)
        world.pause(MOMENTS)
        client.close()
        assert isinstance(calling.exception(60), ConvolverError | RuntimeError)


def call_until_it_fails(client: Client, call: Call) -> None:
    while True:
        call.check(client)


LARGE = convolution((1, 1, 1500, 1500), (1, 1, 2, 2))
HALF = [more(bytes(2**20))] * 4
FAULTS = [
    *(Fault(f"deadline too near, {call.name}", partial(has_no_time, call=call)) for call in (UNARY, STREAM, CHUNKED)),
    Fault("caller cancels, unary", cancels_a_message, (*PLAIN, f"--max-batch={TOGETHER}")),
    Fault("caller cancels, stream", cancels_a_stream),
    Fault("caller cancels, chunks to come", lambda world: cancels_chunks(world, first(LARGE), *HALF)),
    Fault(
        "caller cancels, chunked compute",
        lambda world: cancels_chunks(world, first(HEADER, WEIGHT.tobytes(), HANGING.tobytes())),
    ),
    Fault("caller stops to iterate, stream", stops_to_iterate),
    Fault("task cancelled, unary", partial(cancels_a_task, shape=SHAPE)),
    Fault("task cancelled, chunked", partial(cancels_a_task, shape=(4, CHANNELS, 200, 200))),
    Fault("task cancelled, shared memory", partial(cancels_a_task, shape=(4, CHANNELS, 200, 200)), SHARING),
    *(Fault(f"client closed, {call.name}", partial(closes_the_client, call=call)) for call in (UNARY, STREAM, CHUNKED)),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_server_survives(fault: Fault, endures: Callable[[Fault], None]) -> None:
    endures(fault)
