"""Many inputs through one stream, of the asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc

from convolver.client._chunks_async import stop_with
from convolver.client._composition import HeldWeights
from convolver.client._interchange import AnyArray
from convolver.client._pipeline import Pipeline, checked_in_flight
from convolver.core.errors import BackendFailure, ConvolverError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractAsyncContextManager

    from convolver.client._composition import Composition
    from convolver.client._requests import Reply, Request

    Answered = Callable[[Request], Awaitable[Reply]]
    Call = grpc.aio.StreamStreamCall[bytes, bytes]
    Outgoing = asyncio.Queue[bytes | None]

Frames = Iterable[AnyArray] | AsyncIterable[AnyArray]

FAREWELL = 1.0
"""Seconds that a server may take to end a stream whose requests are all answered."""


class Stream(NamedTuple):
    """An open stream, where it leads, the seconds that a request may take, and the putting of a layer on the same
    server.
    """

    call: Call
    address: str
    timeout: float | None
    put: Callable[[HeldWeights], Awaitable[None]]


OpenStream = Callable[["Composition"], "AbstractAsyncContextManager[Stream]"]
"""Opens a stream; what fails in the context is raised as the client's errors."""


def mapped(
    open_stream: OpenStream,
    answered: Answered,
    composition: Composition,
    frames: Frames,
    *,
    in_flight: int,
    resend: bool,
) -> AsyncGenerator[AnyArray]:
    """The outputs, in the order of frames. `answered` is for those that are too large for the stream."""
    room = checked_in_flight(in_flight)

    async def outputs() -> AsyncGenerator[AnyArray]:
        async with open_stream(composition) as stream:
            pipeline = Pipeline(composition, stream.address, stream.timeout, in_flight=room, resend=resend)
            async with aclosing(_asynchronous(frames)) as source:
                traffic = _Traffic(stream, pipeline, source, answered)
                try:
                    while traffic.is_more:
                        if pipeline.is_ready:
                            yield pipeline.take()
                        else:
                            await traffic.move()
                    await traffic.end()
                finally:
                    await traffic.stop()
        if pipeline.failure:
            raise pipeline.failure

    return outputs()


async def _asynchronous(frames: Frames) -> AsyncGenerator[AnyArray]:
    if hasattr(frames, "__aiter__"):
        async for frame in frames:
            yield frame
    else:
        for frame in frames:
            yield frame


class _Traffic:
    """Both directions of a stream. It is written to while it is read, so that neither end waits for the other, and a
    frame is waited for while an answer is, so that it may depend on an output.
    """

    def __init__(self, stream: Stream, pipeline: Pipeline, frames: AsyncIterator[AnyArray], answered: Answered) -> None:
        self._call, self._put, self._pipeline, self._frames = stream.call, stream.put, pipeline, frames
        self._answered = answered
        self._outgoing: Outgoing = asyncio.Queue()
        self._writing = asyncio.create_task(_write(self._call, self._outgoing))
        stop_with(self._call, self._writing)
        self._asking: asyncio.Task[list[AnyArray]] | None = None
        self._reading: asyncio.Task[object] | None = None
        self._are_frames_left = True

    @property
    def is_more(self) -> bool:
        """Whether there will be another output, as far as is known."""
        return self._are_frames_left or not self._pipeline.is_empty

    async def move(self) -> None:
        """Waits for the next frame that has room or the next answer, and passes it on."""
        if self._asking is None and self._are_frames_left and self._pipeline.has_room:
            self._asking = asyncio.create_task(_next(self._frames))
        if self._reading is None and not self._pipeline.is_empty:
            self._reading = asyncio.create_task(_read(self._call))
        patience = None if self._reading is None else self._pipeline.patience
        done, _ = await asyncio.wait(self._waited_for(), timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise self._pipeline.overdue()
        if self._reading in done:
            await self._receive()
        if self._asking in done:
            await self._send()

    async def end(self) -> None:
        """Says that there is no more, and waits for the stream's end. How it ends matters to no frame."""
        self._outgoing.put_nowait(None)
        with suppress(grpc.RpcError, TimeoutError):
            await asyncio.wait_for(self._call.read(), FAREWELL)

    async def stop(self) -> None:
        """Leaves no task behind."""
        tasks = [self._writing, *self._waited_for()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _waited_for(self) -> list[asyncio.Task[Any]]:
        return [task for task in (self._asking, self._reading) if task is not None]

    async def _send(self) -> None:
        """Puts a request behind the others; waits for the answer to one that is too large for that, whose frame may be
        overwritten afterwards.
        """
        asking, self._asking = cast("asyncio.Task[list[AnyArray]]", self._asking), None
        try:
            requests = list(map(self._pipeline.send, asking.result()))
        except Exception as failure:  # noqa: BLE001 - whatever the caller's iterable raises
            self._pipeline.failure, self._are_frames_left = failure, False
            return
        self._are_frames_left = bool(requests)
        for request in requests:
            if isinstance(request, bytes):
                self._outgoing.put_nowait(request)
            else:
                await self._answer(request)

    async def _answer(self, request: Request) -> None:
        try:
            [output] = (await self._answered(request)).tensors
            self._pipeline.take_in(output)
        except ConvolverError as failure:
            self._pipeline.take_in(failure)

    async def _receive(self) -> None:
        reading, self._reading = cast("asyncio.Task[object]", self._reading), None
        response = reading.result()
        if not isinstance(response, bytes):
            raise BackendFailure("the stream has ended, and not every request is answered")
        for put, message in self._pipeline.receive(response):
            if put is not None:
                await self._put(put)
            self._outgoing.put_nowait(message)


async def _next(frames: AsyncIterator[AnyArray]) -> list[AnyArray]:
    """The next frame; none at the end."""
    async for frame in frames:
        return [frame]
    return []


async def _read(call: Call) -> object:
    return await call.read()


async def _write(call: Call, outgoing: Outgoing) -> None:
    """Until None. A call that has failed tells its reader why."""
    try:
        while (message := await outgoing.get()) is not None:
            await call.write(message)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        return
