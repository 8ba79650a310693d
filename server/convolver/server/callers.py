"""Whose a request is, and until when it is wanted."""

from __future__ import annotations

import asyncio
import math
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc

    Release = Callable[[], None]

CALLER = "convolver-client"
"""The metadata in which a client says which one it is: on a unix socket all have the same peer."""

LONGEST_NAME = 64


class Caller(Protocol):
    """Whose a request is."""

    @property
    def name(self) -> str:
        """Callers of one name share what is theirs."""

    @property
    def deadline(self) -> float:
        """When the request's time is over, in seconds of the event loop's clock."""

    @property
    def keeps_message(self) -> bool:
        """Whether the request's message stays in memory until its answer has been taken."""

    def when_gone(self, release: Release) -> None:
        """Calls `release` once the answer has been taken, or nobody is there any more."""


class OfCall:
    """The caller of a call, whose message gRPC keeps as long as the call. What it is asked is found out when it is
    asked first: most requests need it not.
    """

    keeps_message = True

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self._context = context

    @cached_property
    def name(self) -> str:
        """What it says, else where it calls from."""
        for key, value in self._context.invocation_metadata() or ():
            if key == CALLER:
                return str(value)[:LONGEST_NAME]
        return self._context.peer()

    @property
    def deadline(self) -> float:
        """When the call's time is over, in seconds of the event loop's clock."""
        return _in(self._context.time_remaining())

    def when_gone(self, release: Release) -> None:
        """Calls `release` once the call has ended."""
        self._context.add_done_callback(lambda _: release())  # type: ignore[arg-type]  # as in Calls.follow


class OfStream:
    """The caller of one request of a stream, which is to be done within so many seconds from now. `when_gone` takes
    what is to be called once its answer is written.
    """

    keeps_message = False

    def __init__(self, stream: OfCall, seconds: float | None, when_gone: Callable[[Release], None]) -> None:
        self._stream, self.deadline, self.when_gone = stream, min(stream.deadline, _in(seconds)), when_gone

    @property
    def name(self) -> str:
        """The stream's."""
        return self._stream.name


def _in(seconds: float | None) -> float:
    return math.inf if seconds is None else asyncio.get_running_loop().time() + seconds
