"""ConvolveChunked of the blocking client."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING

import grpc

from convolver.client._chunks import Incoming, messages
from convolver.client._connection import PATHS
from convolver.client._identity import metadata

if TYPE_CHECKING:
    from convolver.client._requests import Reply, Request


def exchanged(channel: grpc.Channel, request: Request, seconds: float | None) -> Reply:
    """The answer. Raises grpc.RpcError, and BackendFailure for an answer that is none."""
    incoming = Incoming(request)
    _exchange(channel, request, incoming, seconds)
    return incoming.reply()


def _exchange(channel: grpc.Channel, request: Request, incoming: Incoming, seconds: float | None) -> None:
    """One call. It is read here while gRPC's own thread sends, a message at a time."""
    outgoing = _Outgoing(messages(request))
    stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveChunked"])
    call = stream(outgoing, timeout=seconds, metadata=metadata())
    try:
        for response in call:
            incoming.take(response)
    finally:
        outgoing.stop()
        call.cancel()  # which does nothing to one that has ended


class _Outgoing(Iterator[bytes]):
    """The messages, for gRPC's thread, until they are stopped: from then on it reads the caller's arrays no more."""

    def __init__(self, messages: Iterator[bytes]) -> None:
        self._messages, self._lock = messages, Lock()

    def __next__(self) -> bytes:
        with self._lock:
            return next(self._messages)

    def stop(self) -> None:
        """Waits for the copy that is being made, if one is; there is no other."""
        with self._lock:
            self._messages = iter(())
