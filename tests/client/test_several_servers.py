"""Layers on several servers of which some hang, and what goes to each of them, in both colours."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.async_calls import asynchronously
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.server.layer_calls import metric
from tests.wait import until, until_in_loop

from convolver.client import AsyncClient, Client, Conv, ServiceUnavailable
from convolver.core.errors import UnknownLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray
    from tests.conftest import RunningServer


@pytest.fixture(scope="module")
def three(serve: Callable[..., RunningServer]) -> list[RunningServer]:
    """Three servers that nobody else calls."""
    return [serve("--backend=reference") for _ in range(3)]


@pytest.fixture
def hanging() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        yield "{}:{}".format(*listening.getsockname())


def together(servers: Sequence[RunningServer]) -> str:
    return ",".join(running.address for running in servers)


def holders(servers: Sequence[RunningServer], digest: str) -> int:
    """How many of them hold the layer."""
    count = 0
    for running in servers:
        with Client(running.address) as client, contextlib.suppress(UnknownLayer):
            count += client.held_layer(digest).digest == digest
    return count


def test_one_that_hangs_is_passed_over(three: list[RunningServer], hanging: str) -> None:
    with Client(f"{hanging},{three[0].address}", timeout=10.0) as client:
        layer, stack = client.layer(KERNEL), client.stack([Conv(KERNEL)])
        for _ in range(6):
            np.testing.assert_array_equal([layer(IMAGE), stack(IMAGE)], [ANSWER] * 2)
        for _ in range(4):
            np.testing.assert_array_equal(list(layer.map([IMAGE] * 2)), [ANSWER] * 2)
            assert client.layers()


def test_one_that_hangs_is_passed_over_in_the_other_colour(three: list[RunningServer], hanging: str) -> None:
    async def main() -> list[NDArray[Any]]:
        async with AsyncClient(f"{hanging},{three[0].address}", timeout=10.0) as client:
            layer, stack = client.layer(KERNEL), client.stack([Conv(KERNEL)])
            found = [output for _ in range(6) for output in (await layer(IMAGE), await stack(IMAGE))]
            for _ in range(4):
                found += [output async for output in layer.map([IMAGE] * 2)]
                assert await client.layers()
            return found

    np.testing.assert_array_equal(asyncio.run(main()), [ANSWER] * 20)


SLOW = np.ones((1, 1, 400, 400), np.float32)
"""Direct, and of 9e10 multiply-accumulates with the image below."""
PICTURE = np.ones((1, 1, 1150, 1150), np.float32)


def test_calls_in_flight_when_the_client_is_closed_say_so(serve: Callable[..., RunningServer]) -> None:
    servers = [serve("--backend=reference") for _ in range(2)]

    def computing() -> bool:
        return any(metric(running, "convolver_in_flight") for running in servers)

    with Client(together(servers)) as client, ThreadPoolExecutor(1) as threads:
        layer = client.layer(SLOW, algorithm="direct")
        layer.put()
        called = threads.submit(layer, PICTURE)
        until(computing, "the call")
        client.close()
        with pytest.raises(ServiceUnavailable):
            called.result()

    async def calls(other: AsyncClient) -> None:
        layer = other.layer(SLOW, algorithm="direct")
        await until_in_loop(lambda: not computing(), "the call before to be stopped")
        called = asyncio.ensure_future(layer(PICTURE))
        await until_in_loop(computing, "the call")
        await other.close()
        with pytest.raises(ServiceUnavailable):
            await called

    asynchronously(together(servers), calls)
    for running in servers:
        running.process.kill()
        running.wait()


def test_clients_do_not_all_begin_with_the_same_server(three: list[RunningServer]) -> None:
    labels = 'grpc_method="ListLayers",grpc_service="convolver.v1.LayerService",grpc_type="unary"'

    def counted() -> list[float]:
        return [metric(running, f"grpc_server_started_total{{{labels}}}") for running in three]

    for running in three:
        with Client(running.address) as client:
            client.layers()
    before = counted()
    for _ in range(12):
        with Client(together(three)) as client:
            client.layers()
    grown = [now - then for now, then in zip(counted(), before, strict=True)]
    assert sum(grown) == 12
    assert max(grown) < 12  # by chance in one of 170 000 runs


def test_a_layer_is_put_on_each_and_deleted_from_each(three: list[RunningServer]) -> None:
    with Client(together(three)) as client:
        layer = client.layer(KERNEL + 3)
        layer.put()
        assert holders(three, layer.digest) == 3
        client.delete_layer(layer.digest)
        assert holders(three, layer.digest) == 0
        with pytest.raises(UnknownLayer, match=layer.digest):
            client.delete_layer(layer.digest)
        with Client(three[1].address) as one:
            one.layer(KERNEL + 3).put()
        client.delete_layer(layer.digest)
        assert holders(three, layer.digest) == 0


def test_a_layer_is_put_on_each_and_deleted_from_each_in_the_other_colour(three: list[RunningServer]) -> None:
    async def calls(client: AsyncClient) -> None:
        layer = client.layer(KERNEL + 4)
        await layer.put()
        assert holders(three, layer.digest) == 3
        await client.delete_layer(layer.digest)
        assert holders(three, layer.digest) == 0
        with pytest.raises(UnknownLayer, match=layer.digest):
            await client.delete_layer(layer.digest)

    asynchronously(together(three), calls)


def test_those_that_are_there_get_it_and_the_others_are_named(three: list[RunningServer]) -> None:
    address = f"127.0.0.1:1,{together(three)}"
    with Client(address) as client:
        layer = client.layer(KERNEL + 5)
        for call in (layer.put, lambda: client.delete_layer(layer.digest)):
            with pytest.raises(ServiceUnavailable, match=f"^{address}: "):
                call()
            assert holders(three, layer.digest) == (3 if call == layer.put else 0)

    async def calls(client: AsyncClient) -> None:
        with pytest.raises(ServiceUnavailable, match=f"^{address}: "):
            await client.layer(KERNEL + 5).put()

    asynchronously(address, calls)
    assert holders(three, layer.digest) == 3


def test_no_thread_is_left_of_a_closed_client(three: list[RunningServer]) -> None:
    before = set(threading.enumerate())
    with Client(together(three)) as client:
        client.layer(KERNEL)(IMAGE)
    until(lambda: not set(threading.enumerate()) - before, "gRPC's threads to end")


@pytest.mark.parametrize("name", ["a" * 64, "\N{LATIN SMALL LETTER A WITH DIAERESIS}" * 64, "a..b", "."])
def test_names_that_no_host_can_have_have_no_address(name: str) -> None:
    address = f"{name}:1,127.0.0.1:1"
    with Client(address) as client, pytest.raises(ServiceUnavailable, match="have no addresses"):
        client.info()
    with pytest.raises(ServiceUnavailable, match="have no addresses"):
        asynchronously(address, AsyncClient.info)
