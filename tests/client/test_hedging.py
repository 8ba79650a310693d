"""A second copy of a slow call, in both colours; the servers are real."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.client.answering_server import answering
from tests.contract import ANSWER, IMAGE, KERNEL, call, good_request
from tests.wait import until

from convolver.client import AsyncClient, Client, _retries
from convolver.client._hedging import FEWEST, KINDS, SAMPLES, Latencies

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Step = Callable[[Any], Any]


class Slow:
    """Answers each call at once; but, once it is told to `hang`, the next one only when it has been left by its caller;
    or so many seconds later, where no other comes.
    """

    def __init__(self, answer: bytes) -> None:
        self.calls = 0
        self.left = threading.Event()
        self._answer, self._lock = answer, threading.Lock()
        self._patience, self._another = 0.0, threading.Event()

    def hang(self, patience: float = 30.0) -> None:
        self._patience = patience
        self._another.clear()

    def __call__(self, _request: bytes, context: grpc.ServicerContext) -> bytes:
        with self._lock:
            self.calls += 1
            patience, self._patience = self._patience, 0.0
        if not patience:
            self._another.set()
        else:
            context.add_callback(self.left.set)
            if self._another.wait(patience):
                self.left.wait(30)
        return self._answer


@pytest.fixture(scope="module")
def slow_answer(client: Client) -> bytes:
    with grpc.insecure_channel(client.address) as channel:
        return call(channel, good_request())


def by_sync(address: str, steps: Sequence[Step], *, hedge: bool = True) -> list[Any]:
    """What the steps give, one after the other; None is left out."""
    with Client(address, hedge=hedge) as client:
        return [given for step in steps if (given := step(client)) is not None]


def by_async(address: str, steps: Sequence[Step], *, hedge: bool = True) -> list[Any]:
    """The same, where the calls among them are awaited."""

    async def main() -> list[Any]:
        async with AsyncClient(address, hedge=hedge) as client:
            given = [await made if inspect.isawaitable(made := step(client)) else made for step in steps]
            return [one for one in given if one is not None]

    return asyncio.run(main())


colours = pytest.mark.parametrize("called", [by_sync, by_async])


def convolve(client: Any) -> Any:  # noqa: ANN401 - of either colour
    return client.conv2d(IMAGE, KERNEL)


@colours
def test_a_slow_call_is_sent_again_and_the_first_answer_counts(slow_answer: bytes, called: Any) -> None:  # noqa: ANN401 - either colour
    slow = Slow(slow_answer)
    with answering(Convolve=slow) as address:
        is_left = partial(until, slow.left.is_set, "the slow one to be cancelled")
        outputs = called(address, [convolve] * FEWEST + [lambda _: slow.hang(), convolve, lambda _: is_left()])
    np.testing.assert_array_equal(outputs, [ANSWER] * (FEWEST + 1))
    assert slow.calls >= FEWEST + 2


@colours
def test_a_slow_question_is_sent_again_too(client: Client, called: Any) -> None:  # noqa: ANN401 - either colour
    with grpc.insecure_channel(client.address) as channel:
        slow = Slow(call(channel, b"", "GetInfo"))
    asks: list[Step] = [lambda asking: asking.info()] * FEWEST
    with answering(GetInfo=slow) as address:
        called(address, [*asks, lambda _: slow.hang(), asks[0]])
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
        addresses = [stack.enter_context(answering(Convolve=partial(behaviour, place))) for place in range(2)]
        outputs = called(",".join(addresses), [convolve] * FEWEST + [lambda _: is_slow.set(), convolve])
    np.testing.assert_array_equal(outputs, [ANSWER] * (FEWEST + 1))
    assert all(event.is_set() for event in came)


@colours
def test_of_two_servers_one_that_is_not_always_there_is_not_noticed(slow_answer: bytes, called: Any) -> None:  # noqa: ANN401 - either colour
    numbers = itertools.count()

    def behaviour(_request: bytes, context: grpc.ServicerContext) -> bytes:
        if next(numbers) % 2 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "try another")
        return slow_answer

    with answering(Convolve=behaviour) as one, answering(Convolve=Slow(slow_answer)) as other:
        outputs = called(f"{one},{other}", [convolve] * 10)
    np.testing.assert_array_equal(outputs, [ANSWER] * 10)


@colours
@pytest.mark.parametrize(
    ("hedge", "known", "tokens"),
    [(False, FEWEST, 20.0), (True, FEWEST - 1, 20.0), (True, FEWEST, 0.0)],
    ids=["not asked for", "too few tell nothing", "no budget"],
)
def test_a_slow_call_is_not_always_sent_again(
    slow_answer: bytes,
    monkeypatch: pytest.MonkeyPatch,
    called: Any,  # noqa: ANN401 - either colour
    hedge: bool,  # noqa: FBT001 - parametrised
    known: int,
    tokens: float,
) -> None:
    monkeypatch.setattr(_retries, "MOST_TOKENS", tokens)
    slow = Slow(slow_answer)
    with answering(Convolve=slow) as address:
        called(address, [convolve] * known + [lambda _: slow.hang(0.3), convolve], hedge=hedge)
    assert slow.calls == known + 1


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
