"""What is sent again because a server is overloaded, in both colours, on every way that a call may take."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.client.answering_server import answering
from tests.client.colours import colours
from tests.client.refusing_server import Refusals, before
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.wait import until, until_in_loop

from convolver.client import AsyncClient, Client, DeadlineExceeded, ServiceUnavailable
from convolver.client._retries import MOST_TOKENS, OF_A_CALL, TRIES, Budget
from convolver.core.errors import Attempt, LimitExceeded, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.client.colours import Called, Calls
    from tests.conftest import RunningServer

SOON = 0.05
"""Seconds after which the server wants a call again."""

WIDE = np.ones((1, 1, 700, 700), np.float32)
"""More than a message."""


@pytest.fixture(scope="module")
def shared(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server that offers shared memory."""
    return serve("--backend=reference", "--shared-memory")


@pytest.fixture
def refusing(shared: RunningServer) -> Iterator[tuple[str, Refusals]]:
    """One before it."""
    with before(shared.address) as both:
        yield both


@pytest.fixture(scope="module")
def plain(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve("--backend=reference")


async def drained(outputs: Any) -> list[Any]:  # noqa: ANN401 - of an asynchronous map
    return [output async for output in outputs]


def mapped(client: Any) -> Any:  # noqa: ANN401 - of either colour
    outputs = client.stack([client.layer(KERNEL)]).map(number * IMAGE for number in range(8))
    return drained(outputs) if hasattr(outputs, "__aiter__") else list(outputs)


WAYS: dict[str, tuple[str, Calls]] = {
    "unary": ("Convolve", lambda client: client.conv2d(IMAGE, KERNEL)),
    "plan": ("Plan", lambda client: client.plan((1, 1, 3, 3), (1, 1, 2, 2))),
    "info": ("GetInfo", lambda client: client.info()),
    "gradients": ("Convolve", lambda client: client.gradients(IMAGE, KERNEL, ANSWER)),
    "layer": ("Convolve", lambda client: client.layer(KERNEL)(IMAGE)),
    "put": ("PutLayer", lambda client: client.layer(KERNEL).put()),
    "shared memory": ("Convolve", lambda client: client.conv2d(WIDE, KERNEL)),
    "map": ("ConvolveStream", mapped),
}


def in_chunks(client: Any) -> Any:  # noqa: ANN401 - of either colour
    """Of a server that shares no memory."""
    return client.conv2d(WIDE, KERNEL)


def refused(refusals: Refusals, method: str) -> list[float]:
    """The seconds between arrivals of that method, oldest first."""
    times = [arrival.time for arrival in refusals.arrivals[method]]
    return [later - earlier for earlier, later in itertools.pairwise(times)]


@colours
@pytest.mark.parametrize("way", WAYS)
def test_what_an_overloaded_server_refuses_comes_again_not_before_it_asks(
    refusing: tuple[str, Refusals], called: Called, way: str
) -> None:
    address, refusals = refusing
    method, calls = WAYS[way]
    expected = called(address, calls)
    refusals.refuse(Overloaded("come again", SOON), TRIES - 1)
    answer = called(address, calls)
    if way in ("plan", "info", "unary", "layer", "map", "shared memory"):
        np.testing.assert_equal(answer, expected)
    waits = refused(refusals, method)[: TRIES - 1]
    assert len(waits) == TRIES - 1
    if way != "map":  # whose others come meanwhile
        assert min(waits) >= SOON


@colours
def test_chunks_come_again_too(plain: RunningServer, called: Called) -> None:
    with before(plain.address) as (address, refusals):
        refusals.refuse(Overloaded("come again", SOON), TRIES - 1)
        output = called(address, in_chunks)
        np.testing.assert_array_equal(output, np.full((1, 1, 699, 699), 6, np.float32))
        waits = refused(refusals, "ConvolveChunked")
    assert len(waits) == TRIES - 1
    assert min(waits) >= SOON


@colours
def test_what_stays_refused_says_what_was_tried(refusing: tuple[str, Refusals], called: Called) -> None:
    address, refusals = refusing
    refusals.refuse(Overloaded("come again", SOON), 100)
    with pytest.raises(
        Overloaded, match=r"^come again \(3 tries in .* s: overloaded, to come again in 0\.05 s"
    ) as caught:
        called(address, lambda client: client.conv2d(IMAGE, KERNEL))
    assert len(refusals.arrivals["Convolve"]) == TRIES
    attempts = caught.value.attempts
    assert [attempt.address for attempt in attempts] == [address] * TRIES
    assert [attempt.seconds for attempt in attempts] == sorted(attempt.seconds for attempt in attempts)
    assert caught.value.message == "come again"


@colours
def test_a_frame_that_stays_refused_is_raised_in_its_place(refusing: tuple[str, Refusals], called: Called) -> None:
    address, refusals = refusing
    refusals.refuse(Overloaded("come again", SOON), 100)
    with pytest.raises(Overloaded, match=r"^come again \(3 tries in ") as caught:
        called(address, mapped)
    assert caught.value.__notes__ == ["frame 0"]


@colours
@pytest.mark.parametrize(
    "error", [Overloaded("come again", 50.0), LimitExceeded("never", "bytes", 1, 2, "--max-request-bytes")]
)
@pytest.mark.parametrize("way", ["unary", "map"])
def test_what_cannot_be_in_time_or_ever_is_raised_at_once(
    refusing: tuple[str, Refusals], called: Called, error: Overloaded | LimitExceeded, way: str
) -> None:
    address, refusals = refusing
    refusals.refuse(error, 100)
    calls: Calls = {
        "unary": lambda client: client.conv2d(IMAGE, KERNEL, timeout=20.0),
        "map": lambda client: first(client.layer(KERNEL, timeout=20.0).map([IMAGE])),
    }[way]
    with pytest.raises(type(error), match=error.message):
        called(address, calls)
    assert sum(map(len, refusals.arrivals.values())) == 1


def first(outputs: Any) -> Any:  # noqa: ANN401 - of either colour
    return anext(outputs) if hasattr(outputs, "__anext__") else next(outputs)


def test_a_tenth_of_the_calls_may_be_repeated_and_a_few_at_the_start(refusing: tuple[str, Refusals]) -> None:
    address, refusals = refusing
    calls = 100
    with Client(address) as client:
        refusals.refuse(Overloaded("come again", 0.0), 10_000)
        for _ in range(calls):
            with pytest.raises(Overloaded):
                client.plan((1, 1, 3), (1, 1, 2))
    again = len(refusals.arrivals["Plan"]) - calls
    most = MOST_TOKENS + OF_A_CALL * calls
    assert most - 2 <= again <= most


def test_a_budget_is_a_tenth_of_the_calls_in_the_long_run() -> None:
    budget = Budget()
    while budget.take():
        pass
    granted = 0
    for _ in range(1000):
        budget.add_call()
        granted += budget.take()
    assert granted in (99, 100)


def test_nobody_there_is_said_with_what_was_tried() -> None:
    with Client("127.0.0.1:1") as client, pytest.raises(ServiceUnavailable) as caught:
        client.info()
    [attempt] = caught.value.attempts
    assert attempt == Attempt("127.0.0.1:1", attempt.seconds, "unavailable, with up to 3 tries of gRPC's own")
    assert str(caught.value).startswith("127.0.0.1:1: ")
    assert str(caught.value).endswith("with up to 3 tries of gRPC's own after " + f"{attempt.seconds:.2f} s)")


@colours
def test_what_a_server_that_is_there_does_not_answer_is_sent_again_by_grpc_alone(called: Called) -> None:
    seen = list[int]()

    def behaviour(_request: bytes, context: grpc.ServicerContext) -> None:
        seen.append(1)
        context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    with answering(GetInfo=behaviour) as address, pytest.raises(ServiceUnavailable, match="not now") as caught:
        called(address, lambda client: client.info())
    assert (len(seen), len(caught.value.attempts)) == (3, 1)


CLOSED = "the client was closed"


def test_a_call_that_waits_to_come_again_ends_with_its_client(refusing: tuple[str, Refusals]) -> None:
    address, refusals = refusing
    refusals.refuse(Overloaded("come again", 100.0), 1)
    with ThreadPoolExecutor(1) as thread:
        client = Client(address, timeout=None)
        waiting = thread.submit(client.info)
        until(lambda: refusals.arrivals, "the call")
        client.close()
        with pytest.raises(ServiceUnavailable, match=CLOSED):
            waiting.result(30)


def test_so_does_one_of_the_other_colour(refusing: tuple[str, Refusals]) -> None:
    address, refusals = refusing
    refusals.refuse(Overloaded("come again", 100.0), 1)

    async def main() -> None:
        client = AsyncClient(address, timeout=None)
        waiting = asyncio.create_task(client.info())
        await until_in_loop(lambda: refusals.arrivals, "the call")
        await client.close()
        with pytest.raises(ServiceUnavailable, match=CLOSED):
            await asyncio.wait_for(waiting, 30)

    asyncio.run(main())


def test_of_several_each_is_said() -> None:
    with Client("127.0.0.1:1,127.0.0.1:2") as client, pytest.raises(ServiceUnavailable) as caught:
        client.layers()
    assert {attempt.address for attempt in caught.value.attempts} == {"127.0.0.1:1", "127.0.0.1:2"}


@colours
def test_a_call_that_is_too_slow_says_what_was_tried(plain: RunningServer, called: Called) -> None:
    with pytest.raises((DeadlineExceeded, Overloaded)) as caught:
        called(
            plain.address,
            lambda client: client.conv2d(np.ones((1, 1, 3000, 3000)), np.ones((1, 1, 15, 15)), timeout=0.05),
        )
    assert len(caught.value.attempts) == 1


@colours
def test_every_call_says_whose_it_is(refusing: tuple[str, Refusals], plain: RunningServer, called: Called) -> None:
    address, refusals = refusing
    for _, calls in WAYS.values():
        called(address, calls)
    with before(plain.address) as (address, others):
        called(address, in_chunks)
    arrivals = refusals.arrivals | others.arrivals
    assert {"Hold", "ConvolveChunked", *(method for method, _ in WAYS.values())} <= arrivals.keys()
    [caller] = {arrival.caller for arrived in arrivals.values() for arrival in arrived}
    assert caller
    assert len(bytes.fromhex(caller)) == 8
