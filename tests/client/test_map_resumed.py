"""Streams that break in the midst of `map`, in both colours: another one goes on where they ended."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.client.answering_server import answering
from tests.client.test_map import colours
from tests.contract import ANSWER, IMAGE, KERNEL

from convolver.client import ServiceUnavailable, _retries
from convolver.client._connection import PATHS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from tests.client.test_map import Mapped
    from tests.conftest import RunningServer

FRAMES, IN_FLIGHT, BREAK = 60, 8, 30


def frames_with(event: Callable[[], object]) -> Iterator[NDArray[Any]]:
    """Frames, in the midst of which something happens."""
    for number in range(FRAMES):
        if number == BREAK:
            event()
        yield number * IMAGE


def check(outputs: list[NDArray[Any]]) -> None:
    np.testing.assert_array_equal(outputs, [number * ANSWER for number in range(FRAMES)])


@colours
@pytest.mark.parametrize("end", ["killed", "drained"])
def test_another_server_goes_on(serve: Callable[..., RunningServer], mapped: Mapped, end: str) -> None:
    servers = [serve("--backend=reference", "--drain-delay=0") for _ in range(2)]

    def one_ends() -> None:
        # Of a stream to one of two it is not known to which: both end, one after the other, and the first comes back.
        for place in range(2):
            if end == "killed":
                servers[place].process.kill()
                servers[place].wait()
            else:
                servers[place].stop()
            if place == 0:
                servers[place] = serve("--backend=reference", listen=servers[place].address)

    address = ",".join(running.address for running in servers)
    check(mapped(address, frames_with(one_ends), KERNEL, in_flight=IN_FLIGHT))


@colours
def test_the_same_server_goes_on_once_it_is_back(
    serve: Callable[..., RunningServer], mapped: Mapped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_retries, "PATIENCE", 60.0)
    running = serve("--backend=reference")

    def restarts() -> None:
        running.process.kill()
        running.wait()
        threads.submit(serve, "--backend=reference", listen=running.address)

    with ThreadPoolExecutor(1) as threads:
        check(mapped(running.address, frames_with(restarts), KERNEL, in_flight=IN_FLIGHT))


@colours
def test_with_progress_it_may_break_more_often(server: RunningServer, mapped: Mapped) -> None:
    streams, frames = list[int](), 3 * _retries.TRIES

    with grpc.insecure_channel(server.address) as channel:

        def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            """Two answers and no more: the layer may be unknown at first."""
            stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveStream"])
            streams.append(1)
            yield from islice(stream(requests), 2)
            context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining: try another")

        with answering(ConvolveStream=behaviour) as address:
            outputs = mapped(address, [number * IMAGE for number in range(frames)], KERNEL, in_flight=2)
    np.testing.assert_array_equal(outputs, [number * ANSWER for number in range(frames)])
    assert len(streams) > _retries.TRIES


@colours
def test_without_progress_it_is_given_up(mapped: Mapped) -> None:
    streams = list[int]()

    def behaviour(_requests: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        streams.append(1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining: try another")
        yield b""

    with (
        answering(ConvolveStream=behaviour) as address,
        pytest.raises(ServiceUnavailable, match=r"draining: try another \(3 tries in ") as caught,
    ):
        mapped(address, [IMAGE] * 4, KERNEL)
    assert len(streams) == 3
    assert [attempt.what for attempt in caught.value.attempts] == ["unavailable"] * 3
