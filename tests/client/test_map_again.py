"""What a map sends again, what it gives before it asks, and how long it waits, in both colours, on real servers."""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.async_calls import asynchronously
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.server.layer_calls import metric
from tests.wait import until, until_in_loop

from convolver.client import AsyncClient, Client, DeadlineExceeded, ServiceUnavailable
from convolver.core.errors import UnknownLayer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    Array = NDArray[Any]
    Mapped = Callable[..., list[Array]]

LARGE, THIN = np.ones((64, 64, 3, 3), np.float32), np.ones((1, 64, 3, 3), np.float32)
"""A weight of 147 456 bytes and an input of 2304."""


@pytest.fixture(scope="module")
def alone(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server that nobody else calls."""
    return serve("--backend=reference")


def by_sync(address: str, frames: Iterable[Array], weight: Array, timeout: float = 60.0) -> list[Array]:
    with Client(address, timeout=timeout) as client:
        return list(client.layer(weight).map(frames))


def by_async(address: str, frames: Iterable[Array], weight: Array, timeout: float = 60.0) -> list[Array]:
    async def main() -> list[Array]:
        async with AsyncClient(address, timeout=timeout) as client:
            return [output async for output in client.layer(weight).map(frames)]

    return asyncio.run(main())


colours = pytest.mark.parametrize("mapped", [by_sync, by_async])


@pytest.fixture
def forget(alone: RunningServer) -> Iterator[Callable[[], None]]:
    """Lets the server forget all layers."""
    with Client(alone.address) as client:

        def forget() -> None:
            for held in client.layers():
                with suppress(UnknownLayer):
                    client.delete_layer(held.digest)

        yield forget


@colours
def test_frames_may_share_a_buffer(alone: RunningServer, mapped: Mapped, forget: Callable[[], None]) -> None:
    def frames() -> Iterator[Array]:
        buffer = np.empty_like(IMAGE)
        for number in range(60):
            if number % 10 == 5:
                forget()
            np.multiply(IMAGE, number, out=buffer)
            yield buffer

    np.testing.assert_array_equal(mapped(alone.address, frames(), KERNEL), [number * ANSWER for number in range(60)])


@colours
def test_a_layer_that_is_forgotten_meanwhile_travels_once_more(
    alone: RunningServer, mapped: Mapped, forget: Callable[[], None]
) -> None:
    def frames() -> Iterator[Array]:
        for number in range(40):
            if number == 20:
                forget()
            yield THIN

    forget()
    before = metric(alone, "convolver_received_bytes_total")
    assert len(mapped(alone.address, frames(), LARGE)) == 40
    received = metric(alone, "convolver_received_bytes_total") - before
    assert 2 * LARGE.nbytes < received < 2.5 * LARGE.nbytes + 60 * THIN.nbytes


def test_an_output_that_is_ready_is_given_before_the_next_frame_is_asked_for(alone: RunningServer) -> None:
    taken: list[Array] = []
    with Client(alone.address) as client, Client(alone.address) as other:

        def frames() -> Iterator[Array]:
            for number in range(12):
                assert len(taken) >= number - 3
                for _ in range(3):  # long enough for the frame before to come back
                    other.conv2d(IMAGE, KERNEL)
                yield IMAGE

        for output in client.layer(KERNEL).map(frames()):
            taken += [output]
    assert len(taken) == 12


def padded(output: Array) -> Array:
    return np.pad(output, ((0, 0), (0, 0), (0, 1), (0, 1)))


def test_a_frame_may_depend_on_an_output(alone: RunningServer) -> None:
    async def calls(client: AsyncClient) -> list[Array]:
        outputs: asyncio.Queue[Array] = asyncio.Queue()
        found: list[Array] = []

        async def frames() -> AsyncIterator[Array]:
            yield IMAGE
            for _ in range(5):
                yield padded(await outputs.get())

        async for output in client.layer(KERNEL / 64).map(frames()):
            outputs.put_nowait(output)
            found.append(output)
        return found

    found = asynchronously(alone.address, lambda client: asyncio.wait_for(calls(client), 60))
    with Client(alone.address) as client:
        for before, output in zip([IMAGE, *map(padded, found[:5])], found, strict=True):
            np.testing.assert_array_equal(client.conv2d(before, KERNEL / 64), output)


@colours
def test_a_server_that_is_silent_is_waited_for_as_long_as_a_call_may_take(
    serve: Callable[..., RunningServer], mapped: Mapped
) -> None:
    silent = serve("--backend=reference")

    def frames() -> Iterator[Array]:
        for number in range(100):
            if number == 50:
                silent.process.send_signal(signal.SIGSTOP)
            yield IMAGE

    try:
        with pytest.raises(DeadlineExceeded, match=rf"^{silent.address}: no answer within the timeout of 1\.0 s"):
            mapped(silent.address, frames(), KERNEL, 1.0)
    finally:
        silent.process.send_signal(signal.SIGCONT)


@colours
def test_a_server_that_dies_ends_it(serve: Callable[..., RunningServer], mapped: Mapped) -> None:
    dying = serve("--backend=reference")

    def frames() -> Iterator[Array]:
        for number in range(100):
            if number == 50:
                dying.process.kill()
                dying.wait()
            yield IMAGE

    with pytest.raises(ServiceUnavailable, match=f"^{dying.address}: "):
        mapped(dying.address, frames(), KERNEL)


def test_nothing_is_left_of_a_map_whose_frames_do_not_come(alone: RunningServer) -> None:
    async def calls(client: AsyncClient) -> list[str]:
        closed = list[str]()

        async def frames() -> AsyncIterator[Array]:
            try:
                yield IMAGE
                await asyncio.Event().wait()
            finally:
                closed.append("the frames")

        outputs = client.layer(KERNEL).map(frames())
        np.testing.assert_array_equal(await anext(outputs), ANSWER)
        waiting = asyncio.ensure_future(anext(outputs))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until_in_loop(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "gRPC's tasks to end, and ours")
        return closed

    assert asynchronously(alone.address, calls) == ["the frames"]
    until(lambda: metric(alone, "convolver_in_flight") == 0, "the server to be idle")
