"""AsyncClient's connection: calls that end early, its end, its loop, and forks."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.async_calls import CALLS, asynchronously
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.wait import until_in_loop

from convolver.client import AsyncClient, Client, DeadlineExceeded, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

BIG, WIDE = np.ones((4, 1, 1000, 1000), np.float32), np.ones((1, 1, 101, 101), np.float32)


def metrics(running: RunningServer) -> str:
    with urllib.request.urlopen(f"{running.http}/metrics", timeout=30) as answer:  # noqa: S310 - our own http://
        return str(answer.read().decode())


def ended_early(running: RunningServer) -> float:
    """How many Convolve and ConvolveChunked calls were left by their callers."""
    labels = [
        f'grpc_server_handled_total{{grpc_code="{code}",grpc_method="Convolve'
        for code in ("Canceled", "DeadlineExceeded")  # whose deadline passed is either: the client's clock goes first
    ]
    return sum(
        float(line.rpartition(" ")[2]) for line in metrics(running).splitlines() if line.startswith(tuple(labels))
    )


async def until_in_flight(running: RunningServer, calls: int) -> None:
    await until_in_loop(lambda: f"\nconvolver_in_flight {calls}.0\n" in metrics(running), f"{calls} in flight")


@pytest.fixture(scope="module")
def alone(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server that nobody else calls, of one thread: however fast the machine is, `slow` is slow."""
    return serve("--backend=reference", "--threads=1")


def slow(client: AsyncClient, timeout: float | None = None) -> Coroutine[Any, Any, NDArray[Any]]:
    """Takes one thread of the reference several seconds, in blocks of a fraction of one between which it can stop."""
    return client.conv2d(BIG, WIDE, algorithm="direct", timeout=timeout)


async def by_cancelling(client: AsyncClient, running: RunningServer) -> None:
    task = asyncio.create_task(slow(client))
    await until_in_flight(running, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_leaving(client: AsyncClient, running: RunningServer) -> None:
    task = asyncio.create_task(slow(client))
    await until_in_flight(running, 1)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await task


async def by_deadline(client: AsyncClient, running: RunningServer) -> None:
    with pytest.raises(DeadlineExceeded, match=rf"^{running.address}: no answer within the timeout of 2\.0 s"):
        await slow(client, timeout=2.0)  # time enough for the server to hear of the call


@pytest.mark.parametrize("way", [by_cancelling, by_leaving, by_deadline])
def test_a_call_that_ends_early_ends_on_the_server(
    alone: RunningServer, way: Callable[[AsyncClient, RunningServer], Awaitable[None]]
) -> None:
    before = ended_early(alone)

    async def calls(client: AsyncClient) -> None:
        await client.info()
        await way(client, alone)
        await until_in_loop(lambda: ended_early(alone) == before + 1, "the server to hear of it")
        await until_in_flight(alone, 0)
        np.testing.assert_array_equal(await client.conv2d(IMAGE, KERNEL), ANSWER)

    asynchronously(alone.address, calls)


@pytest.mark.parametrize("name", CALLS)
def test_a_closed_client_says_so(client: Client, name: str) -> None:
    async def call(other: AsyncClient) -> None:
        await other.info()
        await other.close()
        with pytest.raises(RuntimeError, match=r"^the client is closed$"):
            await CALLS[name](other)

    asynchronously(client.address, call)  # which closes it once more


def test_a_client_that_was_never_used_may_be_closed() -> None:
    async def nothing(_client: AsyncClient) -> None: ...

    asynchronously("127.0.0.1:1", nothing)


def test_a_call_in_flight_when_the_client_is_closed_is_unavailable(alone: RunningServer) -> None:
    async def calls(client: AsyncClient) -> None:
        task = asyncio.create_task(slow(client))
        await until_in_flight(alone, 1)
        await client.close()
        with pytest.raises(ServiceUnavailable, match=f"^{alone.address}: the client was closed"):
            await task
        await until_in_flight(alone, 0)

    asynchronously(alone.address, calls)


def test_a_task_that_is_cancelled_while_the_client_is_closed_is_cancelled(alone: RunningServer) -> None:
    async def calls(client: AsyncClient) -> None:
        task = asyncio.create_task(slow(client))
        await until_in_flight(alone, 1)
        task.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    asynchronously(alone.address, calls)


def test_a_client_belongs_to_the_loop_it_was_first_used_in(client: Client) -> None:
    other = AsyncClient(client.address)  # made outside of any
    with asyncio.Runner() as first, asyncio.Runner() as second:
        np.testing.assert_array_equal(first.run(other.conv2d(IMAGE, KERNEL)), ANSWER)
        for use in (other.info, other.close):
            with pytest.raises(RuntimeError, match="each loop needs an AsyncClient of its own"):
                second.run(use())
        np.testing.assert_array_equal(first.run(other.conv2d(IMAGE, KERNEL)), ANSWER)
        first.run(other.close())
        with pytest.raises(RuntimeError, match=r"^the client is closed$"):
            second.run(other.info())


def test_each_thread_may_have_a_loop_and_a_client(client: Client) -> None:
    def calls(thread: int) -> bool:
        async def gathered(other: AsyncClient) -> list[Any]:
            return await asyncio.gather(*(other.conv2d(thread * IMAGE, KERNEL) for _ in range(20)))

        return np.array_equal(asynchronously(client.address, gathered), [thread * ANSWER] * 20)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(calls, range(12))) == [True] * 12


FORKED = """
import asyncio, gc, os, sys
from convolver.client import AsyncClient, Client
address = sys.argv[1]
client, blocking = AsyncClient(address), Client(address)
blocking.info()

def in_a_fork(check):
    child = os.fork()
    if not child:
        check()
        os._exit(0)
    return os.waitpid(child, 0)[1]

async def one_more():
    async with AsyncClient(address) as another:
        assert (await another.info()).backends

def while_it_is_open():
    global client
    for calls in (lambda: asyncio.run(client.info()), lambda: asyncio.run(one_more()), blocking.info):
        try:
            calls()
        except RuntimeError as error:
            print(error, flush=True)
    client = None
    gc.collect()

with asyncio.Runner() as runner:
    print(in_a_fork(lambda: asyncio.run(one_more())), flush=True)
    runner.run(client.info())
    print(in_a_fork(while_it_is_open), flush=True)
    runner.run(client.info())
    blocking.info()
    runner.run(client.close())
    print(in_a_fork(lambda: [asyncio.run(one_more()), blocking.info()]), flush=True)
"""


def test_a_forked_process_hears_what_does_not_work_in_it(alone: RunningServer) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORKED, alone.address], capture_output=True, text=True, timeout=100, check=False
    )
    before, anothers, forked, also_blocking, while_open, after = ended.stdout.splitlines()
    assert (before, while_open, after) == ("0", "0", "0")
    assert "belongs to another event loop" in anothers
    assert "forked while the channel of an AsyncClient was alive" in forked
    assert forked == also_blocking


def test_a_client_that_is_not_closed_ends_quietly(alone: RunningServer) -> None:
    script = (
        "import asyncio, sys\nfrom convolver.client import AsyncClient\n"
        "asyncio.run(AsyncClient(sys.argv[1]).info(), debug=False)"  # else asyncio says what takes a busy machine long
    )
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", script, alone.address]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
