"""Several servers behind one client, that take turns."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.async_calls import asynchronously
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.client import AsyncClient, Client, Conv, ServiceUnavailable, _channels
from convolver.core.errors import UnknownLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    Serve = Callable[..., RunningServer]

LARGE = np.ones((64, 64, 3, 3), np.float32)
THIN = np.ones((1, 64, 3, 3), np.float32)
"""LARGE has 147 456 bytes, THIN, an input of it, has 2304."""


@pytest.fixture(scope="module")
def three(serve: Serve) -> list[RunningServer]:
    """Three servers that nobody else calls."""
    return [serve("--backend=reference") for _ in range(3)]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server's turn waits for its connection on a machine that pauses too."""
    monkeypatch.setattr(_channels, "GRACE", 30.0)


def together(servers: Sequence[RunningServer]) -> str:
    return ",".join(running.address for running in servers)


def counted(servers: Sequence[RunningServer], method: str = "Convolve") -> list[int]:
    """Calls of the method that each has answered."""
    kind = "bidi_stream" if method == "ConvolveStream" else "unary"
    labels = f'grpc_method="{method}",grpc_service="convolver.v1.ConvolutionService",grpc_type="{kind}"'
    return [int(metric(running, f"grpc_server_started_total{{{labels}}}")) for running in servers]


def growth(servers: Sequence[RunningServer], before: list[int], method: str = "Convolve") -> list[int]:
    return [now - then for now, then in zip(counted(servers, method), before, strict=True)]


def received(servers: Sequence[RunningServer]) -> list[float]:
    return [metric(running, "convolver_received_bytes_total") for running in servers]


def warm(client: Client, servers: Sequence[RunningServer]) -> None:
    """Calls until every server is connected: the first calls go to those that are."""
    before = counted(servers)

    def all_called() -> bool:
        client.conv2d(IMAGE, KERNEL)
        return all(growth(servers, before))

    until(all_called, "a call of each server")


def test_each_gets_every_third_call(three: list[RunningServer]) -> None:
    with Client(together(three)) as client:
        warm(client, three)
        before = counted(three)
        for _ in range(30):
            np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
        assert growth(three, before) == [10, 10, 10]


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("count", [2, 3])
def test_each_is_sent_a_layer_once(three: list[RunningServer], count: int) -> None:
    servers = three[:count]
    with Client(together(servers)) as client:
        layer = client.layer(count * LARGE)
        stack = client.stack([layer, Conv(np.ones((1, 64, 1, 1), np.float32))])
        before, calls = received(servers), counted(servers)
        for _ in range(12):
            assert (layer(THIN) == count * 64 * 9).all()
            assert (stack(THIN) == count * 64 * 64 * 9).all()
        # each: the first of its calls is refused and repeated with the layer, and nothing else is sent again
        assert growth(servers, calls) == [24 // count + 1] * count
        for now, then in zip(received(servers), before, strict=True):
            assert LARGE.nbytes < now - then < 1.5 * LARGE.nbytes


@pytest.mark.usefixtures("patient")
def test_each_is_sent_a_layer_once_in_the_other_colour(three: list[RunningServer]) -> None:
    before = received(three)

    async def calls(client: AsyncClient) -> list[NDArray[Any]]:
        layer = client.layer(5 * LARGE)
        return [await layer(THIN) for _ in range(12)]

    assert all((output == 5 * 64 * 9).all() for output in asynchronously(together(three), calls))
    for now, then in zip(received(three), before, strict=True):
        assert LARGE.nbytes < now - then < 1.5 * LARGE.nbytes


def test_many_tasks_may_make_the_connections_at_once(three: list[RunningServer]) -> None:
    async def calls(client: AsyncClient) -> list[NDArray[Any]]:
        layer = client.layer(KERNEL)
        return await asyncio.gather(*(layer(number * IMAGE) for number in range(60)))

    outputs = asynchronously(together(three), calls)
    np.testing.assert_array_equal(outputs, [number * ANSWER for number in range(60)])


@pytest.mark.usefixtures("patient")
def test_all_pages_of_a_list_are_one_servers(serve: Serve) -> None:
    servers = [serve("--backend=reference") for _ in range(2)]
    with Client(servers[0].address) as client:
        for number in range(1001):
            client.layer(np.full((1, 1, 1), number, np.int64)).put()
    with Client(together(servers)) as client:
        assert sorted(len(client.layers()) for _ in servers) == [0, 1001]

    async def calls(client: AsyncClient) -> list[int]:
        return sorted([len(await client.layers()) for _ in servers])

    assert asynchronously(together(servers), calls) == [0, 1001]


def test_without_resend_each_says_that_it_does_not_know_the_layer(three: list[RunningServer]) -> None:
    with Client(together(three)) as client:
        layer = client.layer(7 * LARGE, resend=False)
        for _ in range(3):
            with pytest.raises(UnknownLayer, match=layer.digest):
                layer(THIN)


def test_streams_go_to_each_in_turn(three: list[RunningServer]) -> None:
    with Client(together(three)) as client:
        warm(client, three)
        before = counted(three, "ConvolveStream")
        layer = client.layer(KERNEL + 1)
        expected = [client.conv2d(number * IMAGE, KERNEL + 1) for number in range(20)]
        for _ in range(6):
            outputs = list(layer.map(number * IMAGE for number in range(20)))
            np.testing.assert_array_equal(outputs, expected)
        assert growth(three, before, "ConvolveStream") == [2, 2, 2]


def test_one_that_is_killed_and_comes_back_goes_unnoticed(serve: Serve) -> None:
    servers = [serve("--backend=reference") for _ in range(3)]
    with Client(together(servers)) as client:
        warm(client, servers)
        layer = client.layer(KERNEL)

        def calls() -> None:
            for number in range(12):
                np.testing.assert_array_equal(client.conv2d(number * IMAGE, KERNEL), number * ANSWER)
                np.testing.assert_array_equal(layer(number * IMAGE), number * ANSWER)

        calls()
        servers[1].process.kill()
        calls()
        servers[1].wait()
        calls()
        servers[1] = serve("--backend=reference", listen=servers[1].address)
        with Client(servers[1].address) as other:

            def has_the_layer() -> bool:
                calls()
                return [held.digest for held in other.layers()] == [layer.digest]

            until(has_the_layer, "calls of the one that came back")


def test_tasks_do_not_notice_it_either(serve: Serve) -> None:
    servers = [serve("--backend=reference") for _ in range(2)]

    async def calls(client: AsyncClient) -> list[NDArray[Any]]:
        layer = client.layer(KERNEL)
        outputs = [await layer(IMAGE) for _ in range(4)]
        servers[0].process.kill()
        return outputs + [await layer(IMAGE) for _ in range(8)]

    np.testing.assert_array_equal(asynchronously(together(servers), calls), [ANSWER] * 12)


def test_where_all_are_gone_the_addresses_are_said(serve: Serve) -> None:
    servers = [serve("--backend=reference") for _ in range(2)]
    with Client(together(servers)) as client:
        layer = client.layer(KERNEL)
        layer(IMAGE)
        for running in servers:
            running.stop()
        for call in (client.info, lambda: layer(IMAGE)):
            with pytest.raises(ServiceUnavailable, match=together(servers)):
                call()


def test_names_are_looked_up(three: list[RunningServer]) -> None:
    address = " , ".join(running.address.replace("127.0.0.1", "localhost") for running in three)
    with Client(address) as client:
        layer = client.layer(KERNEL)
        for _ in range(6):
            np.testing.assert_array_equal(layer(IMAGE), ANSWER)
        assert client.address == address


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_addresses_may_be_ipv6(serve: Serve) -> None:
    servers = [serve("--backend=reference", listen="[::1]:0") for _ in range(2)]
    assert servers[0].address.startswith("[::1]:")
    with Client(together(servers)) as client:
        warm(client, servers)
        before = counted(servers)
        for _ in range(10):
            np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
        assert growth(servers, before) == [5, 5]


def test_a_name_without_an_address_is_said_when_it_is_called() -> None:
    address = "127.0.0.1:1,no-such-host.invalid:1"  # never resolves: RFC 6761
    with Client(address) as client, pytest.raises(ServiceUnavailable, match=f"^{address}: "):
        client.info()
    with pytest.raises(ServiceUnavailable, match=f"^{address}: "):
        asynchronously(address, AsyncClient.info)


WRONG = {
    "": "''",
    " ": "' '",
    "a:1,": "''",
    ",a:1": "''",
    "a:1, ,b:2": "' '",
    "a:1,b": "'b'",
    "a:1,b:": "'b:'",
    "a:1,b:x": "'b:x'",
    "a:1,b:65536": "'b:65536'",
    "a:1,::1:2": "'::1:2'",
    "a:1,unix:/b": "'unix:/b'",
    "a:1,dns:///b:2": "'dns:///b:2'",
}


@pytest.mark.parametrize("address", WRONG)
@pytest.mark.parametrize("colour", [Client, AsyncClient])
def test_an_address_that_is_none_is_named(address: str, colour: type[Client | AsyncClient]) -> None:
    with pytest.raises(ValueError, match=rf"^the address is {WRONG[address]}.*; it must be host:port, ") as caught:
        colour(address)
    assert repr(address) in str(caught.value)
