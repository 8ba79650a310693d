"""What is left of shared memory where calls are interrupted, and clients are closed, forgotten or forked."""

from __future__ import annotations

import asyncio
import gc
import mmap
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.client.answering_server import answering
from tests.client.async_calls import asynchronously
from tests.client.shared_memory_calls import SHAPE, WEIGHT, numbers, travelled
from tests.server.hold_calls import shared, until_nothing_is_shared
from tests.wait import until, until_in_loop

from convolver.client import AsyncClient, Client, _regions, _shared_memory
from convolver.client._shared_memory import HOLD_SECONDS, Lease
from convolver.core.errors import BackendFailure, InvalidConvolution
from convolver.v1.shared_memory_service_pb2 import HoldResponse, RegionHeld

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.conftest import RunningServer


@pytest.fixture(scope="module")
def sharing(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve("--shared-memory")


@pytest.fixture
def regions() -> Callable[[], int]:
    """How many this process has more than now."""

    def count() -> int:
        gc.collect()
        links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum("memfd:convolver" in str(link) for link in links) // 2  # each has two descriptors

    before = count()
    return lambda: count() - before


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    """What the first call ends with, after the server has taken what it offers."""
    failures, hold = [asyncio.CancelledError], Lease.hold

    def interrupt(*given: object) -> None:
        if failures:
            raise failures.pop()
        hold(*given)  # type: ignore[arg-type] # it is given what it takes

    monkeypatch.setattr(Lease, "hold", interrupt)
    monkeypatch.setattr(_shared_memory, "LONG_PAUSE", 0.01)
    return failures[0]


@pytest.mark.usefixtures("patient_offers")
def test_memory_whose_offer_is_interrupted_is_offered_again(
    sharing: RunningServer, interrupted: type[BaseException]
) -> None:
    with Client(sharing.address) as client:
        given = client.empty(SHAPE)
        given[...] = numbers()
        with pytest.raises(interrupted):
            client.convolve(given, WEIGHT)
        until(lambda: travelled(sharing, lambda: client.convolve(given, WEIGHT)) < 2000, "memory to be shared")
    until_nothing_is_shared(sharing)


@pytest.mark.usefixtures("patient_offers")
def test_so_is_that_of_a_task_that_is_cancelled(sharing: RunningServer, interrupted: type[BaseException]) -> None:
    async def calls(client: AsyncClient) -> None:
        given = client.empty(SHAPE)
        given[...] = numbers()
        with pytest.raises(interrupted):
            await client.convolve(given, WEIGHT)
        for _ in range(1000):
            await client.convolve(given, WEIGHT)
            if shared(sharing)[0] == 2:
                return
        pytest.fail("memory is not shared")

    asynchronously(sharing.address, calls)
    until_nothing_is_shared(sharing)


@pytest.mark.usefixtures("patient_offers")
def test_a_closed_client_keeps_no_memory(sharing: RunningServer, regions: Callable[[], int]) -> None:
    with Client(sharing.address) as client:
        kept = client.empty(SHAPE)
        output = client.convolve(kept, WEIGHT)
        client.convolve(numbers(), WEIGHT)
        assert regions() >= 3
    assert regions() == 2
    kept[...] = 1  # which is the caller's as before
    assert (kept == 1).all()
    del kept, output
    assert regions() == 0


@pytest.mark.usefixtures("patient_offers")
def test_nor_does_one_of_the_other_colour(sharing: RunningServer, regions: Callable[[], int]) -> None:
    async def calls() -> None:
        async with AsyncClient(sharing.address) as client:
            await client.convolve(numbers(), WEIGHT)
            assert regions() == 2
        assert regions() == 0

    asyncio.run(calls())


def test_a_client_that_is_forgotten_shares_nothing_any_more(sharing: RunningServer) -> None:
    threads = set(threading.enumerate())
    Client(sharing.address).convolve(numbers(), WEIGHT)
    gc.collect()
    until_nothing_is_shared(sharing)
    until(lambda: set(threading.enumerate()) <= threads, "its threads to end")


def test_nor_does_one_of_the_other_colour_that_is_forgotten(sharing: RunningServer) -> None:
    async def calls() -> None:
        await AsyncClient(sharing.address).convolve(numbers(), WEIGHT)
        gc.collect()
        await until_in_loop(lambda: shared(sharing)[0] == 0, "nothing to be shared")

    asyncio.run(calls())


def test_a_system_without_memfds_sends_everything(sharing: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    with Client(sharing.address) as client:
        given = client.empty(SHAPE)
        given[...] = numbers()
        assert given.flags.owndata
        assert travelled(sharing, lambda: client.convolve(given, WEIGHT)) > given.nbytes


def test_memory_that_nobody_uses_makes_room(monkeypatch: pytest.MonkeyPatch, regions: Callable[[], int]) -> None:
    monkeypatch.setattr(_regions, "MOST", 3)
    forgotten = list[_regions.Memory]()
    pool = _regions.Pool(forgotten.append)
    for size in (1, 3, 9, 27, 81):  # MiB, none of which is used for another
        assert not pool.empty((size << 20,), "uint8").flags.owndata
    assert [memory.bytes >> 20 for memory in forgotten] == [2, 4]
    forgotten.clear()
    assert regions() == 3


def test_memory_that_comes_back_while_other_memory_is_let_go_goes_too() -> None:
    """As from another thread, that cannot wait for the pool."""
    lent, forgotten = list[object](), list[_regions.Memory]()

    def forget(memory: _regions.Memory) -> None:
        forgotten.append(memory)
        lent.clear()

    pool = _regions.Pool(forget)
    free = pool.empty(SHAPE, "float32")
    lent.append(pool.empty(SHAPE, "float32"))
    del free
    pool.close()
    assert len(forgotten) == 2


def test_a_lease_keeps_no_memory_by_itself() -> None:
    lease, memory = Lease(), _regions.Memory(mmap.PAGESIZE)
    lease.hold(memory, HoldResponse(held=RegionHeld(tag=1, id="one")))
    assert dict(lease.ids) == {memory: "one"}
    del memory
    assert not lease.ids


def test_a_forked_process_is_lent_nothing_of_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _regions.Pool(lambda _: None)
    assert not pool.empty(SHAPE, "float32").flags.owndata
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert pool.empty(SHAPE, "float32").flags.owndata


def test_an_offer_that_nobody_answers_takes_its_time_from_the_calls() -> None:
    left = list[float]()

    def says_nothing(offers: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        with suppress(grpc.RpcError):  # the caller has left
            list(offers)
        yield from ()

    def notes(_: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        left.append(context.time_remaining())
        context.abort(grpc.StatusCode.INTERNAL, "it is noted")
        yield b""

    with (
        answering(Hold=says_nothing, ConvolveChunked=notes) as address,
        Client(address) as client,
        pytest.raises(BackendFailure, match="it is noted"),
    ):
        client.convolve(numbers(), WEIGHT, timeout=10.0)
    assert left[0] < 10.0 - HOLD_SECONDS / 2


@pytest.mark.parametrize("shape", [7, (7,), [3, 2], ()])
def test_an_empty_array_has_its_shape(sharing: RunningServer, shape: int | Sequence[int]) -> None:
    with Client(sharing.address) as client:
        assert client.empty(shape).shape == np.empty(shape).shape


@pytest.mark.parametrize("shape", [-2, (3, -1), (2.5,), (1 << 40,)])
def test_what_is_no_shape_is_refused(sharing: RunningServer, shape: Any) -> None:  # noqa: ANN401 - it is wrong
    with Client(sharing.address) as client, pytest.raises(InvalidConvolution, match=r"^shape\["):
        client.empty(shape)


def test_a_closed_client_has_no_arrays(sharing: RunningServer) -> None:
    async def close(client: AsyncClient) -> None:
        await client.close()

    blocking, other = Client(sharing.address), AsyncClient(sharing.address)
    blocking.close()
    asyncio.run(close(other))
    for closed in (blocking, other):
        with pytest.raises(RuntimeError, match=r"^the client is closed$"):
            closed.empty(SHAPE)


def test_info_says_whether_memory_is_shared(sharing: RunningServer, server: RunningServer) -> None:
    with Client(sharing.address) as one, Client(server.address) as other:
        assert (one.info().shared_memory, other.info().shared_memory) == (True, False)
