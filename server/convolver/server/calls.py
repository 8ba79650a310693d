"""The calls that a stopping server waits for."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc


class Calls:
    """Counts calls from their handler's start until gRPC has sent their status: a handler that has returned has not
    answered yet.
    """

    def __init__(self) -> None:
        self._open = 0
        self._ended = asyncio.Event()
        self._ended.set()

    def follow(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Counts the call of this context until it has ended."""
        self._open += 1
        self._ended.clear()
        context.add_done_callback(self._end)  # type: ignore[arg-type]  # the stub asks for a context that nobody can make

    async def ended(self) -> None:
        """Returns once no call is open."""
        await self._ended.wait()

    def _end(self, _: object) -> None:
        self._open -= 1
        if not self._open:
            self._ended.set()
