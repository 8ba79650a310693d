"""ConvolveChunked of the asynchronous client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from convolver.client._chunks import Incoming, messages
from convolver.client._connection import PATHS
from convolver.client._identity import metadata
from convolver.client._settling import settled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convolver.client._requests import Reply, Request

    Call = grpc.aio.StreamStreamCall[bytes, bytes]


async def exchanged(channel: grpc.aio.Channel, request: Request, seconds: float | None) -> Reply:
    """The answer. Raises grpc.RpcError, and BackendFailure for an answer that is none."""
    incoming = Incoming(request)
    await _exchange(channel, request, incoming, seconds)
    return incoming.reply()


async def _exchange(channel: grpc.aio.Channel, request: Request, incoming: Incoming, seconds: float | None) -> None:
    """One call. It is written to while it is read."""
    stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveChunked"])
    call = stream(timeout=seconds, metadata=metadata())
    writing = asyncio.create_task(_write(call, messages(request)))
    stop_with(call, writing)
    try:
        while isinstance(response := await call.read(), bytes):
            incoming.take(response)
    except grpc.aio.AioRpcError as failure:
        raise await settled(call, failure) from None
    finally:
        call.cancel()  # which does nothing to one that has ended
        await asyncio.gather(writing, return_exceptions=True)


def stop_with(call: Call, writing: asyncio.Task[None]) -> None:
    """Ends the writing with the call. Else it finds that it cannot write, and gRPC's asyncio puts a status of its own
    in the place of the server's.
    """

    def stop(_: object) -> None:
        writing.cancel()

    call.add_done_callback(stop)


async def _write(call: Call, messages: Iterator[bytes]) -> None:
    """A call that has failed tells its reader why."""
    try:
        for message in messages:
            await call.write(message)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        return
