"""Many inputs through one stream, in both colours, on real servers."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing, closing
from itertools import repeat
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.client.async_calls import asynchronously
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.server.layer_calls import metric
from tests.wait import until, until_in_loop

from convolver.client import AsyncClient, Client, Conv, DeadlineExceeded, ServiceUnavailable
from convolver.core.errors import IntegerOverflow, InvalidConvolution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    Frames = Iterable[NDArray[Any]]
    Mapped = Callable[..., list[NDArray[Any]]]

WINDOW = 2
"""Requests of one stream that the server takes at a time."""


@pytest.fixture(scope="module")
def alone(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server that nobody else calls, of a small window."""
    return serve("--backend=reference", f"--stream-window={WINDOW}")


@pytest.fixture
def client(alone: RunningServer) -> Iterator[Client]:
    """A client of it; afterwards, nothing is in flight."""
    with Client(alone.address) as client:
        yield client
    until(lambda: metric(alone, "convolver_in_flight") == 0, "the server to be idle")


def by_sync(address: str, frames: Frames, weight: NDArray[Any] = KERNEL, **options: Any) -> list[NDArray[Any]]:  # noqa: ANN401 - of map
    with Client(address) as client:
        return list(client.layer(weight).map(frames, **options))


def by_async(address: str, frames: Frames, weight: NDArray[Any] = KERNEL, **options: Any) -> list[NDArray[Any]]:  # noqa: ANN401 - of map
    async def calls(client: AsyncClient) -> list[NDArray[Any]]:
        return [output async for output in client.layer(weight).map(frames, **options)]

    return asynchronously(address, calls)


def by_async_frames(address: str, frames: Frames, weight: NDArray[Any] = KERNEL, **options: Any) -> list[NDArray[Any]]:  # noqa: ANN401 - of map
    async def later() -> AsyncIterator[NDArray[Any]]:
        for frame in frames:
            await asyncio.sleep(0)
            yield frame

    return by_async(address, later(), weight, **options)  # type: ignore[arg-type] # map takes both


colours = pytest.mark.parametrize("mapped", [by_sync, by_async, by_async_frames])


def numbered(count: int) -> Iterator[NDArray[Any]]:
    return (number * IMAGE for number in range(count))


@colours
@pytest.mark.parametrize("in_flight", [1, 3, 100])
def test_the_outputs_come_in_the_order_of_the_frames(alone: RunningServer, mapped: Mapped, in_flight: int) -> None:
    outputs = mapped(alone.address, numbered(50), in_flight=in_flight)
    np.testing.assert_array_equal(outputs, [number * ANSWER for number in range(50)], strict=True)


@colours
def test_no_frames_give_no_outputs(alone: RunningServer, mapped: Mapped) -> None:
    assert mapped(alone.address, []) == []


@colours
def test_frames_may_be_of_many_shapes(alone: RunningServer, mapped: Mapped) -> None:
    frames = [np.ones((1 + size % 2, 1, size, 2 * size), np.float32) for size in range(2, 30)]
    for frame, output in zip(frames, mapped(alone.address, frames), strict=True):
        assert output.shape == (frame.shape[0], 1, frame.shape[2] - 1, frame.shape[3] - 1)
        assert (output == KERNEL.sum()).all()


def test_torch_tensors_come_back_as_torch_tensors(client: Client) -> None:
    torch = pytest.importorskip("torch", reason="torch is what is tested")
    frames = [torch.from_numpy(IMAGE), IMAGE, torch.from_numpy(IMAGE)]
    for output, kind in zip(client.layer(KERNEL).map(frames), (torch.Tensor, np.ndarray, torch.Tensor), strict=True):
        assert isinstance(output, kind)
        np.testing.assert_array_equal(np.asarray(output), ANSWER)


@colours
def test_large_frames_beyond_the_window_do_not_lock(alone: RunningServer, mapped: Mapped) -> None:
    frames = [np.full((1, 1, 500, 500), number, np.float32) for number in range(48)]  # of 1 MB, as their outputs
    outputs = mapped(alone.address, frames, np.ones((1, 1, 1, 1), np.float32), in_flight=24 * WINDOW)
    assert [output[0, 0, 0, 0] for output in outputs] == list(range(48))


class Counted:
    """Frames that count how many were asked for."""

    def __init__(self, count: int) -> None:
        self.asked, self._count = 0, count

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for _ in range(self._count):
            self.asked += 1
            yield IMAGE


def test_no_more_frames_are_asked_for_than_there_is_room(client: Client) -> None:
    frames, taken = Counted(40), 0
    with closing(client.layer(KERNEL).map(frames, in_flight=4)) as outputs:
        assert frames.asked == 0
        for taken, _ in enumerate(outputs, 1):
            assert frames.asked <= taken + 4
    assert taken == frames.asked == 40


def test_nor_by_the_other_colour(alone: RunningServer) -> None:
    async def calls(other: AsyncClient) -> int:
        frames, taken = Counted(40), 0
        async for _ in other.layer(KERNEL).map(frames, in_flight=4):
            taken += 1
            await asyncio.sleep(0.001)  # what comes meanwhile waits
            assert frames.asked <= taken + 4
        return taken

    assert asynchronously(alone.address, calls) == 40


def test_the_first_frame_goes_alone_so_that_the_layer_travels_once(client: Client, alone: RunningServer) -> None:
    weight = np.random.default_rng(1).integers(-3, 4, (64, 64, 3, 3)).astype(np.float32)
    frames = [np.ones((1, 64, 3, 3), np.float32)] * 30
    before = metric(alone, "convolver_received_bytes_total")
    assert len(list(client.layer(weight).map(frames))) == 30
    assert metric(alone, "convolver_received_bytes_total") - before < 1.5 * weight.nbytes + 30 * frames[0].nbytes


@colours
def test_a_slow_server_is_waited_for(alone: RunningServer, mapped: Mapped) -> None:
    frames = [np.ones((1, 1, 300, 300), np.float32)] * 6
    outputs = mapped(alone.address, frames, np.ones((1, 1, 15, 15), np.float32), in_flight=100)
    assert len(outputs) == 6
    np.testing.assert_allclose(outputs, 225, rtol=1e-5)


def test_a_slow_caller_is_waited_for(client: Client, alone: RunningServer) -> None:
    large = np.ones((1, 1, 500, 500), np.float32)
    outputs = client.layer(np.ones((1, 1, 1, 1), np.float32)).map([large] * 48, in_flight=32)
    first = next(outputs)
    until(lambda: metric(alone, "convolver_in_flight") == 0, "the server to have no more room")
    np.testing.assert_array_equal([first, *outputs], [large] * 48)


def overflowing(count: int, wrong: int) -> Iterator[NDArray[Any]]:
    return (np.full((1, 1, 3), 100 if number == wrong else 1, np.int8) for number in range(count))


@pytest.mark.parametrize("in_flight", [1, 16])
def test_an_error_is_raised_in_its_place_and_ends_it(client: Client, in_flight: int) -> None:
    outputs = client.layer(np.full((1, 1, 1), 5, np.int8)).map(overflowing(20, wrong=7), in_flight=in_flight)
    assert [int(next(outputs)[0, 0, 0]) for _ in range(7)] == [5] * 7
    with pytest.raises(IntegerOverflow, match="500"):
        next(outputs)
    assert list(outputs) == []


def broken(count: int, failure: Exception) -> Iterator[NDArray[Any]]:
    yield from numbered(count)
    raise failure


FAILURES: dict[str, Callable[[], Iterator[Any]]] = {
    "a frame that does not fit": lambda: iter([*numbered(5), np.ones((1, 2, 3, 3), np.float32), IMAGE]),
    "the frames' own error": lambda: broken(5, LookupError("mine: input.shape")),
    "one as gRPC has them": lambda: broken(5, grpc.RpcError("mine: input.shape")),
}


@pytest.mark.parametrize("frames", FAILURES.values(), ids=FAILURES)
def test_what_is_wrong_with_frames_is_raised_after_the_outputs_before(
    client: Client, frames: Callable[[], Iterator[Any]]
) -> None:
    kinds = (InvalidConvolution, LookupError, grpc.RpcError)
    outputs = client.layer(KERNEL).map(frames())
    np.testing.assert_array_equal([next(outputs) for _ in range(5)], [number * ANSWER for number in range(5)])
    with pytest.raises(kinds, match="input"):
        next(outputs)

    async def calls(other: AsyncClient) -> list[NDArray[Any]]:
        outputs = other.layer(KERNEL).map(frames())
        found = [await anext(outputs) for _ in range(5)]
        with pytest.raises(kinds, match="input"):
            await anext(outputs)
        return found

    np.testing.assert_array_equal(asynchronously(client.address, calls), [number * ANSWER for number in range(5)])


def test_who_leaves_early_leaves_nothing_behind(client: Client, alone: RunningServer) -> None:
    layer, threads = client.layer(KERNEL), set(threading.enumerate())
    for _ in range(3):
        for output in layer.map(repeat(IMAGE), in_flight=8):  # without end
            np.testing.assert_array_equal(output, ANSWER)
            break
    until(lambda: not set(threading.enumerate()) - threads, "the streams' threads to end")
    until(lambda: metric(alone, "convolver_in_flight") == 0, "the server to be idle")


def test_a_task_that_leaves_early_or_is_cancelled_leaves_nothing_behind(alone: RunningServer) -> None:
    async def forever(other: AsyncClient, seen: list[int], *, most: int | None) -> None:
        async with aclosing(other.layer(KERNEL).map(repeat(IMAGE))) as outputs:
            async for _ in outputs:
                seen.append(1)
                if len(seen) == most:
                    break

    async def calls(other: AsyncClient) -> set[str]:
        before, seen = asyncio.all_tasks(), list[int]()
        await forever(other, [], most=3)
        task = asyncio.create_task(forever(other, seen, most=None))
        await until_in_loop(lambda: len(seen) > 5, "outputs")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_in_loop(lambda: asyncio.all_tasks() <= before, "the streams' tasks to end")
        return {str(output.shape) async for output in other.layer(KERNEL).map([IMAGE])}  # the client is as it was

    assert asynchronously(alone.address, calls) == {"(1, 1, 2, 2)"}
    until(lambda: metric(alone, "convolver_in_flight") == 0, "the server to be idle")


def test_a_layer_that_is_forgotten_meanwhile_is_sent_again(client: Client) -> None:
    layer = client.layer(KERNEL)
    outputs = layer.map(numbered(30), in_flight=3)
    found = [next(outputs) for _ in range(10)]
    client.delete_layer(layer.digest)
    np.testing.assert_array_equal(found + list(outputs), [number * ANSWER for number in range(30)])


def test_several_at_once_do_not_disturb_each_other(client: Client) -> None:
    layers = [client.layer(factor * KERNEL) for factor in range(4)]
    outputs = zip(*(layer.map(numbered(20)) for layer in layers), strict=True)
    for number, found in enumerate(outputs):
        np.testing.assert_array_equal(found, [number * factor * ANSWER for factor in range(4)])

    async def calls(other: AsyncClient) -> list[list[NDArray[Any]]]:
        async def one(factor: int) -> list[NDArray[Any]]:
            return [output async for output in other.stack([Conv(factor * KERNEL)]).map(numbered(20))]

        return await asyncio.gather(*map(one, range(4)))

    expected = [[number * factor * ANSWER for number in range(20)] for factor in range(4)]
    np.testing.assert_array_equal(asynchronously(client.address, calls), expected)


@pytest.mark.parametrize("in_flight", [0, -1, 4097, 1.5, True])
def test_what_is_no_number_in_flight_is_refused_at_once(in_flight: Any) -> None:  # noqa: ANN401 - what is tested
    for layer in (Client("127.0.0.1:1").layer(KERNEL), AsyncClient("127.0.0.1:1").layer(KERNEL)):
        with pytest.raises(InvalidConvolution, match="in_flight"):
            layer.map([], in_flight=in_flight)


def test_each_frame_has_the_timeout_of_a_call(client: Client) -> None:
    slow = client.layer(np.ones((1, 1, 99, 99), np.float32), timeout=0.05, algorithm="direct")
    with pytest.raises(DeadlineExceeded, match=rf"^{client.address}: no answer within the timeout of 0\.05 s"):
        next(slow.map([np.ones((1, 1, 900, 900), np.float32)]))


@colours
def test_nobody_at_the_address_is_said(mapped: Mapped) -> None:
    with pytest.raises(ServiceUnavailable, match=r"^unix:/nowhere/socket: "):
        mapped("unix:/nowhere/socket", [IMAGE])


def test_to_close_the_client_ends_it(alone: RunningServer) -> None:
    with Client(alone.address) as client:
        outputs = client.layer(KERNEL).map(repeat(IMAGE))
        next(outputs)
    with pytest.raises(ServiceUnavailable):
        list(outputs)
