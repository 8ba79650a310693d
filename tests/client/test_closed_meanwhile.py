"""Calls whose client is closed while they wait for a connection, in both colours."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.contract import IMAGE, KERNEL
from tests.wait import until_in_loop

from convolver.client import AsyncClient, Client, ServiceUnavailable, _channels, _embedded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


LARGE = np.ones((1, 1, 300, 300), np.float32)
"""Worth shared memory."""


async def of_map(client: AsyncClient) -> list[Any]:
    return [output async for output in client.layer(KERNEL).map([IMAGE])]


CALLS: dict[str, tuple[Callable[[Client], object], Callable[[AsyncClient], Any]]] = {
    "layer": (lambda client: client.layer(KERNEL)(IMAGE), lambda client: client.layer(KERNEL)(IMAGE)),
    "map": (lambda client: [*client.layer(KERNEL).map([IMAGE])], of_map),
    "info": (lambda client: client.info(), lambda client: client.info()),
    "convolve": (lambda client: client.convolve(IMAGE, KERNEL), lambda client: client.convolve(IMAGE, KERNEL)),
}


@pytest.fixture
def silent() -> Iterator[str]:
    """Two addresses that take connections and say nothing."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        yield ",".join("{}:{}".format(*listening.getsockname()) for listening in (one, other))


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a call waits until a server is connected."""
    is_to_wait, seen = _channels._is_to_wait, threading.Event()  # noqa: SLF001 - where it waits shows nowhere else

    def notice(*given: Any) -> bool:  # noqa: ANN401 - whatever the original takes
        seen.set()
        return is_to_wait(*given)

    monkeypatch.setattr(_channels, "_is_to_wait", notice)
    return seen


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_waits_for_a_connection_is_unavailable(silent: str, waits: threading.Event, name: str) -> None:
    client = Client(silent, hedge=True)
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(CALLS[name][0], client)
        assert waits.wait(30)
        client.close()
        with pytest.raises(ServiceUnavailable, match="the client was closed"):
            call.result(60)


@pytest.mark.parametrize("name", CALLS)
def test_so_is_one_of_the_other_colour(silent: str, waits: threading.Event, name: str) -> None:
    async def main() -> None:
        client = AsyncClient(silent, hedge=True)
        call = asyncio.ensure_future(CALLS[name][1](client))
        await until_in_loop(waits.is_set, "the call to wait")
        await client.close()
        with pytest.raises(ServiceUnavailable, match="the client was closed"):
            await call

    asyncio.run(main())


@pytest.mark.parametrize("image", [IMAGE, LARGE], ids=["small", "large"])
def test_so_is_one_that_waits_for_the_embedded_server(monkeypatch: pytest.MonkeyPatch, image: Any) -> None:  # noqa: ANN401 - an array
    acquire, starts, goes_on = _embedded.acquire, threading.Event(), threading.Event()
    released = list[object]()

    def slowly() -> _embedded.EmbeddedServer:
        starts.set()
        assert goes_on.wait(30)
        server = acquire()
        release = server.release
        monkeypatch.setattr(server, "release", lambda: released.append(release()))
        return server

    monkeypatch.setattr(_embedded, "acquire", slowly)

    async def main() -> None:
        client = AsyncClient()
        call = asyncio.ensure_future(client.convolve(image, KERNEL))
        await until_in_loop(starts.is_set, "the server to start")
        closing = asyncio.create_task(client.close())
        await asyncio.sleep(0)
        closing.cancel()  # which the end of the client does not mind
        goes_on.set()
        with pytest.raises(ServiceUnavailable, match="the client was closed"):
            await call
        await client.close()
        assert released == [None]

    monkeypatch.delenv("CONVOLVER_ADDRESS", raising=False)
    asyncio.run(main())
