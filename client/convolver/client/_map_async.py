"""Many inputs through one stream, of the asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, NamedTuple

import grpc

from convolver.client._interchange import AnyArray
from convolver.client._pipeline import Pipeline, checked_in_flight
from convolver.core.errors import BackendFailure

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from convolver.client._composition import Composition
    from convolver.core.parameters import Parameters

    Call = grpc.aio.StreamStreamCall[bytes, bytes]
    Outgoing = asyncio.Queue[bytes | None]

Frames = Iterable[AnyArray] | AsyncIterable[AnyArray]


class Stream(NamedTuple):
    """An open stream, where it leads, and the seconds that a request may take."""

    call: Call
    address: str
    timeout: float | None


OpenStream = Callable[["Parameters"], "AbstractAsyncContextManager[Stream]"]
"""Opens a stream; what fails in the context is raised as the client's errors."""


def mapped(
    open_stream: OpenStream, composition: Composition, frames: Frames, *, in_flight: int, resend: bool
) -> AsyncGenerator[AnyArray]:
    """The outputs, in the order of frames."""
    room = checked_in_flight(in_flight)

    async def outputs() -> AsyncGenerator[AnyArray]:
        async with open_stream(composition.parameters) as (call, address, timeout):
            pipeline = Pipeline(composition, address, timeout, in_flight=room, resend=resend)
            outgoing: Outgoing = asyncio.Queue()
            writing = asyncio.create_task(_write(call, outgoing))
            try:
                async with (
                    aclosing(_asynchronous(frames)) as source,
                    aclosing(_outputs(pipeline, call, outgoing, source)) as found,
                ):
                    async for output in found:
                        yield output
                outgoing.put_nowait(None)
                with suppress(grpc.RpcError):  # how it ends matters to no frame
                    while await call.read() is not grpc.aio.EOF:
                        pass
            finally:
                writing.cancel()
        if pipeline.failure:
            raise pipeline.failure

    return outputs()


async def _write(call: Call, outgoing: Outgoing) -> None:
    """Writes while answers are read: neither end waits for the other. A call that has failed tells its reader why."""
    try:
        while (message := await outgoing.get()) is not None:
            await call.write(message)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        return


async def _asynchronous(frames: Frames) -> AsyncGenerator[AnyArray]:
    if hasattr(frames, "__aiter__"):
        async for frame in frames:
            yield frame
    else:
        for frame in frames:
            yield frame


async def _outputs(
    pipeline: Pipeline, call: Call, outgoing: Outgoing, frames: AsyncIterator[AnyArray]
) -> AsyncGenerator[AnyArray]:
    is_more = True
    while True:
        while is_more and pipeline.has_room:
            try:
                outgoing.put_nowait(pipeline.send(await anext(frames)))
            except StopAsyncIteration:
                is_more = False
            except Exception as failure:  # noqa: BLE001 - whatever the caller's iterable raises
                pipeline.failure, is_more = failure, False
        if pipeline.is_ready:
            yield pipeline.take()
        elif pipeline.is_empty:
            return
        else:
            await _receive(pipeline, call, outgoing)


async def _receive(pipeline: Pipeline, call: Call, outgoing: Outgoing) -> None:
    response = await call.read()
    if not isinstance(response, bytes):
        raise BackendFailure("the stream has ended, and not every request is answered")
    again = pipeline.receive(response)
    if again is not None:
        outgoing.put_nowait(again)
