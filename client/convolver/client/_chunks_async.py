"""ConvolveChunked of the asynchronous client."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc

from convolver.client._chunks import Incoming, Tries, may_be_repeated, messages
from convolver.client._connection import PATHS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convolver.client._requests import Reply, Request

    Call = grpc.aio.StreamStreamCall[bytes, bytes]

OWN_TEXT = "Internal error from Core"
"""What gRPC's asyncio says of a call that had ended when it was written to, where it does not know yet how."""

PATIENCE, PAUSE = 1.0, 0.002
"""Seconds that it may take to know, and between two looks."""


async def exchanged(channel: grpc.aio.Channel, request: Request, seconds: float | None, *, repeats: bool) -> Reply:
    """The answer, sent for again where nobody was there if `repeats`. Raises grpc.RpcError, and BackendFailure for an
    answer that is none.
    """
    tries = Tries(seconds)
    while True:
        incoming = Incoming(request)
        try:
            await _exchange(channel, request, incoming, tries.seconds)
            return incoming.reply()
        except grpc.RpcError as failure:
            pause = tries.pause() if repeats and may_be_repeated(failure, incoming) else None
            if pause is None:
                raise
        await asyncio.sleep(pause)


async def _exchange(channel: grpc.aio.Channel, request: Request, incoming: Incoming, seconds: float | None) -> None:
    """One call. It is written to while it is read."""
    stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveChunked"])
    call = stream(timeout=seconds)
    writing = asyncio.create_task(_write(call, messages(request)))
    stop_with(call, writing)
    try:
        while isinstance(response := await call.read(), bytes):
            incoming.take(response)
    except grpc.aio.AioRpcError as failure:
        raise await _settled(call, failure) from None
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


async def _settled(call: Call, failure: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """How the call has ended, by what the server said where it said anything."""
    end = time.monotonic() + PATIENCE
    while failure.details() == OWN_TEXT and time.monotonic() < end:
        await asyncio.sleep(PAUSE)
        try:
            await call.read()
        except grpc.aio.AioRpcError as later:
            failure = later
    return failure
