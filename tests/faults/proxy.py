"""A TCP proxy that does to the bytes what networks do."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from asyncio import StreamReader as Reader
from asyncio import StreamWriter as Writer
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

Result = TypeVar("Result")

PIECE = 16 * 1024
"""Most bytes that are read at once."""

FOR_EVER = 3600.0
FLIPPED = 0x55
"""The bits of a byte that is corrupted."""


class Way(Enum):
    """Which way the bytes go."""

    UP = "to the server"
    DOWN = "to the client"


class Kind(Enum):
    """What happens to a connection, from some byte of one of its ways on."""

    DELAY = "each piece comes `seconds` later, from the first on"
    SLOW = "each piece takes `seconds`, and nothing is read ahead"
    STALL = "nothing is read for `seconds`, then all goes on"
    RESET = "both sides get a reset"
    END = "both sides get an end, as of a proxy that restarts"
    CORRUPT = "one byte is another"
    SWALLOW = "bytes and the end vanish, and the connection stays: half-open, or a black hole"


class Mishap(NamedTuple):
    """What happens, to which bytes, from byte `at` of a connection on."""

    kind: Kind
    way: Way = Way.UP
    at: int = 0
    seconds: float = 0.0


class _Broken(Exception):
    """The connection is to be cut."""


class _Pump:
    """One way of one connection."""

    def __init__(self, reader: Reader, writer: Writer, mishap: Mishap | None) -> None:
        self._reader, self._writer, self._mishap = reader, writer, mishap
        self._passed = 0

    async def run(self) -> None:
        """Until the end of what comes. Raises _Broken where the connection is to be cut."""
        delay = self._mishap.seconds if self._mishap and self._mishap.kind is Kind.DELAY else 0.0
        while piece := await self._reader.read(PIECE):
            before, self._passed = self._passed, self._passed + len(piece)
            if delay:  # others follow it meanwhile, as on a long line
                asyncio.get_running_loop().call_later(delay, self._writer.write, piece)
                continue
            if self._mishap and self._passed > self._mishap.at:
                piece = await self._mangled(piece, max(0, self._mishap.at - before), self._mishap)
            self._writer.write(piece)
            await self._writer.drain()
        await asyncio.sleep(delay)
        if not self._swallows:
            self._writer.write_eof()

    @property
    def _swallows(self) -> bool:
        return self._mishap is not None and self._mishap.kind is Kind.SWALLOW

    async def _mangled(self, piece: bytes, at: int, mishap: Mishap) -> bytes:
        """What goes on of a piece whose byte `at` is the first that is concerned."""
        match mishap.kind:
            case Kind.SLOW:
                await asyncio.sleep(mishap.seconds)
            case Kind.STALL:
                self._mishap = None
                await asyncio.sleep(mishap.seconds)
            case Kind.CORRUPT:
                self._mishap = None
                return piece[:at] + bytes([piece[at] ^ FLIPPED]) + piece[at + 1 :]
            case Kind.SWALLOW:
                return piece[:at]
            case Kind.RESET | Kind.END:
                self._writer.write(piece[:at])
                await self._writer.drain()
                raise _Broken
        return piece


class Proxy:
    """Forwards connections to `target`, host and port, in a thread of its own; `mishap` happens to those that begin
    while it is set.
    """

    def __init__(self, target: str) -> None:
        self.mishap: Mishap | None = None
        self._host, _, self._port = target.rpartition(":")
        self._connections = set[asyncio.Task[None]]()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self._server = self._ask(asyncio.start_server(self._connected, "127.0.0.1", 0, limit=PIECE))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.reset_all()
        self._server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset_all(self) -> None:
        """Cuts every connection."""
        self._ask(self._reset_all())

    async def _reset_all(self) -> None:
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _ask(self, what: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(FOR_EVER)

    async def _connected(self, reader: Reader, writer: Writer) -> None:
        task = asyncio.current_task()
        assert task
        self._connections.add(task)
        mishap, writers, ends = self.mishap, [writer], False
        try:
            upstream, upward = await asyncio.open_connection(self._host, self._port, limit=PIECE)
            writers.append(upward)
            await _both_ways((reader, writer), (upstream, upward), mishap)
            ends = True
        except (OSError, _Broken):
            ends = mishap is not None and mishap.kind is Kind.END
        except asyncio.CancelledError:  # of `reset_all`
            pass
        finally:
            self._connections.discard(task)
            for one in writers:
                (_end if ends else _reset)(one)


async def _both_ways(client: tuple[Reader, Writer], server: tuple[Reader, Writer], mishap: Mishap | None) -> None:
    """Until both ways have ended; where an end is swallowed, until it is cancelled."""
    up = _Pump(client[0], server[1], mishap if mishap and mishap.way is Way.UP else None)
    down = _Pump(server[0], client[1], mishap if mishap and mishap.way is Way.DOWN else None)
    pumps = [asyncio.ensure_future(pump.run()) for pump in (up, down)]
    try:
        await asyncio.gather(*pumps)
        if mishap and mishap.kind is Kind.SWALLOW:
            await asyncio.sleep(FOR_EVER)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def _end(writer: Writer) -> None:
    writer.close()


def _reset(writer: Writer) -> None:
    with suppress(OSError):
        made: socket.socket = writer.get_extra_info("socket")
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
