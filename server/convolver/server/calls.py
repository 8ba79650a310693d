"""The calls that a stopping server waits for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine

    import grpc


class Calls:
    """Counts calls from their handler's start until gRPC has sent their status: a handler that has returned has not
    answered yet. Streams, which may be open for ever, are told when the server drains.
    """

    def __init__(self) -> None:
        self._open = 0
        self._ended = asyncio.Event()
        self._ended.set()
        self._draining = False
        self._readers: set[asyncio.Task[None]] = set()

    def follow(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Counts the call of this context until it has ended."""
        self._open += 1
        self._ended.clear()
        context.add_done_callback(self._end)  # type: ignore[arg-type]  # the stub asks for a context that nobody can make

    @property
    def open(self) -> int:
        """Calls that are open."""
        return self._open

    async def ended(self) -> None:
        """Returns once no call is open."""
        await self._ended.wait()

    async def unless_draining(self, reading: Coroutine[Any, Any, None]) -> bool:
        """Runs what reads a stream until it ends, or until the server drains: says whether it does."""
        reader = asyncio.create_task(reading)
        self._readers.add(reader)
        try:
            if self._draining:
                reader.cancel()
            await asyncio.wait([reader])
        finally:
            self._readers.discard(reader)
            reader.cancel()
        if not reader.cancelled():
            reader.result()
        return reader.cancelled() and self._draining

    def drain(self) -> None:
        """Ends the reading of every stream, of those to come too."""
        self._draining = True
        for reader in self._readers:
            reader.cancel()

    def _end(self, _: object) -> None:
        self._open -= 1
        if not self._open:
            self._ended.set()
