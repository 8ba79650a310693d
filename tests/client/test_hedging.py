"""A second copy of a slow call, in both colours; the servers are real."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL, SERVICE, call, good_request

from convolver.client import AsyncClient, Client
from convolver.client._hedging import FEWEST, KINDS, SAMPLES, Latencies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Output = NDArray[Any]


class Slow:
    """Answers each call at once; but, once it is told to `hang`, the next one only when another has come."""

    def __init__(self, answer: bytes) -> None:
        self.calls = 0
        self._answer, self._lock = answer, threading.Lock()
        self._is_hanging, self._another = False, threading.Event()

    def hang(self) -> None:
        self._is_hanging = True
        self._another.clear()

    def __call__(self, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self.calls += 1
            is_hanging, self._is_hanging = self._is_hanging, False
        if is_hanging:
            self._another.wait(30)
        else:
            self._another.set()
        return self._answer


@contextmanager
def serving(behaviour: Callable[[bytes, grpc.ServicerContext], bytes]) -> Iterator[str]:
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        handlers: dict[str, Any] = {"Convolve": grpc.unary_unary_rpc_method_handler(behaviour)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.fixture(scope="module")
def slow_answer(client: Client) -> bytes:
    with grpc.insecure_channel(client.address) as channel:
        return call(channel, good_request())


def by_sync(address: str, count: int, before_last: Callable[[], None]) -> list[Output]:
    with Client(address, hedge=True) as client:
        outputs = [client.conv2d(IMAGE, KERNEL) for _ in range(count)]
        before_last()
        return [*outputs, client.conv2d(IMAGE, KERNEL)]


def by_async(address: str, count: int, before_last: Callable[[], None]) -> list[Output]:
    async def main() -> list[Output]:
        async with AsyncClient(address, hedge=True) as client:
            outputs = [await client.conv2d(IMAGE, KERNEL) for _ in range(count)]
            before_last()
            return [*outputs, await client.conv2d(IMAGE, KERNEL)]

    return asyncio.run(main())


colours = pytest.mark.parametrize("called", [by_sync, by_async])


@colours
def test_a_slow_call_is_sent_again_and_the_first_answer_counts(slow_answer: bytes, called: Any) -> None:  # noqa: ANN401 - either colour
    slow = Slow(slow_answer)
    with serving(slow) as address:
        outputs = called(address, FEWEST, slow.hang)
    np.testing.assert_array_equal(outputs, [ANSWER] * (FEWEST + 1))
    assert slow.calls >= FEWEST + 2


@colours
def test_of_two_servers_it_goes_to_the_other(slow_answer: bytes, called: Any) -> None:  # noqa: ANN401 - either colour
    is_slow, came = threading.Event(), [threading.Event(), threading.Event()]

    def behaviour(place: int, _request: bytes, _context: grpc.ServicerContext) -> bytes:
        if is_slow.is_set():
            came[place].set()
            came[1 - place].wait(30)
        return slow_answer

    with ExitStack() as stack:
        addresses = [stack.enter_context(serving(partial(behaviour, place))) for place in range(2)]
        outputs = called(",".join(addresses), FEWEST, is_slow.set)
    np.testing.assert_array_equal(outputs, [ANSWER] * (FEWEST + 1))
    assert all(event.is_set() for event in came)


@colours
def test_few_calls_tell_nothing_and_are_not_sent_again(slow_answer: bytes, called: Any) -> None:  # noqa: ANN401 - either colour
    slow = Slow(slow_answer)
    with serving(slow) as address:
        called(address, FEWEST - 2, lambda: None)
    assert slow.calls == FEWEST - 1


def test_a_percentile_needs_twenty_and_forgets_the_oldest() -> None:
    latencies = Latencies()
    for _ in range(FEWEST - 1):
        latencies.add(b"kind", 5.0)
    assert latencies.percentile(b"kind") is None
    latencies.add(b"kind", 5.0)
    assert latencies.percentile(b"kind") == 5.0
    for number in range(SAMPLES):
        latencies.add(b"kind", float(number))
    assert latencies.percentile(b"kind") == 95.0
    assert latencies.percentile(b"another") is None


def test_so_many_kinds_are_known() -> None:
    latencies = Latencies()
    for kind in range(KINDS + 1):
        for _ in range(FEWEST):
            latencies.add(str(kind).encode(), 1.0)
    assert latencies.percentile(b"0") is None
    assert latencies.percentile(b"1") == 1.0
