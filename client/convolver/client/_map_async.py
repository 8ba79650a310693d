"""Many inputs through one stream, of the asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc

from convolver.client._chunks_async import stop_with
from convolver.client._composition import HeldWeights
from convolver.client._interchange import AnyArray
from convolver.client._pipeline import Pipeline, Progress, Route, checked_in_flight
from convolver.client._retries import Tries
from convolver.client._settling import settled
from convolver.client.errors import ServiceUnavailable
from convolver.core.errors import BackendFailure, ConvolverError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from contextlib import AbstractContextManager

    from convolver.client._composition import Composition
    from convolver.client._requests import Reply, Request

    Answered = Callable[[Request], Awaitable[Reply]]
    Call = grpc.aio.StreamStreamCall[bytes, bytes]
    Outgoing = asyncio.Queue[bytes | None]

Frames = Iterable[AnyArray] | AsyncIterable[AnyArray]

FAREWELL = 1.0
"""Seconds that a server may take to end a stream whose requests are all answered."""


class Stream(NamedTuple):
    """An open stream and where it leads; a context in which what fails is raised as the client's errors; the putting of
    a layer on the same server; and the wait for a server in its place, which says whether to open another.
    """

    call: Call
    route: Route
    failures: Callable[[], AbstractContextManager[None]]
    put: Callable[[HeldWeights], Awaitable[None]]
    recovers: Callable[[Tries], Awaitable[bool]]


OpenStream = Callable[["Composition"], Awaitable[Stream]]
"""Opens a stream."""


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
        open_next = partial(open_stream, composition)
        stream = await open_next()
        pipeline = Pipeline(composition, stream.route, in_flight=room, resend=resend)
        async with aclosing(_asynchronous(frames)) as source:
            traffic = _Traffic(open_next, stream, pipeline, source, answered)
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


class _Link:
    """Both directions of one stream."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._outgoing: Outgoing = asyncio.Queue()
        self._writing = asyncio.create_task(_write(stream.call, self._outgoing))
        stop_with(stream.call, self._writing)
        self.reading: asyncio.Task[object] | None = None

    def send(self, message: bytes | None) -> None:
        """Puts it behind the others; None is the end."""
        self._outgoing.put_nowait(message)

    async def stop(self) -> None:
        """Ends it and leaves no task behind."""
        tasks = [task for task in (self._writing, self.reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.stream.call.cancel()  # which does nothing to one that has ended


class _Traffic:
    """Both directions of a stream, and of the next one where it breaks. It is written to while it is read, so that
    neither end waits for the other, and a frame is waited for while an answer is, so that it may depend on an output.
    """

    def __init__(
        self,
        open_next: Callable[[], Awaitable[Stream]],
        stream: Stream,
        pipeline: Pipeline,
        frames: AsyncIterator[AnyArray],
        answered: Answered,
    ) -> None:
        self._open_next, self._pipeline, self._frames, self._answered = open_next, pipeline, frames, answered
        self._link, self._progress = _Link(stream), Progress()
        self._asking: asyncio.Task[list[AnyArray]] | None = None
        self._are_frames_left = True

    @property
    def is_more(self) -> bool:
        """Whether there will be another output, as far as is known."""
        return self._are_frames_left or not self._pipeline.is_empty

    async def move(self) -> None:
        """Waits for the next frame that has room or the next answer, and passes it on."""
        if self._asking is None and self._are_frames_left and self._pipeline.has_room:
            self._asking = asyncio.create_task(_next(self._frames))
        if self._link.reading is None and not self._pipeline.is_empty:
            self._link.reading = asyncio.create_task(_read(self._link.stream.call))
        reading = self._link.reading
        patience = None if reading is None else self._pipeline.patience
        waited_for: list[asyncio.Task[Any]] = [task for task in (self._asking, reading) if task is not None]
        done, _ = await asyncio.wait(waited_for, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            self._pipeline.check_patience()
        for message in self._pipeline.later():
            self._link.send(message)
        if reading in done:
            await self._receive()
        if self._asking in done:
            await self._send()

    async def end(self) -> None:
        """Says that there is no more, and waits for the stream's end. How it ends matters to no frame."""
        self._link.send(None)
        with suppress(grpc.RpcError, TimeoutError):
            await asyncio.wait_for(self._link.stream.call.read(), FAREWELL)

    async def stop(self) -> None:
        """Leaves no task behind."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        await self._link.stop()

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
                self._link.send(request)
            else:
                await self._answer(request)

    async def _answer(self, request: Request) -> None:
        try:
            [output] = (await self._answered(request)).tensors
            self._pipeline.take_in(output)
        except ConvolverError as failure:
            self._pipeline.take_in(failure)

    async def _receive(self) -> None:
        """An answer, or the stream's end: then another one is opened, where there will be a server."""
        reading, self._link.reading = cast("asyncio.Task[object]", self._link.reading), None
        try:
            with self._link.stream.failures():
                await self._hand(reading.result())
        except ServiceUnavailable as broken:
            stream = self._link.stream
            tries = self._progress.tries(self._pipeline, stream.route, broken)
            await self._link.stop()
            if not await stream.recovers(tries):
                raise
            self._link = _Link(await self._open_next())
            for message in self._pipeline.unanswered():
                self._link.send(message)

    async def _hand(self, response: object) -> None:
        if not isinstance(response, bytes):
            raise BackendFailure("the stream has ended, and not every request is answered")
        for put, message in self._pipeline.receive(response):
            if put is not None:
                await self._link.stream.put(put)
            self._link.send(message)


async def _next(frames: AsyncIterator[AnyArray]) -> list[AnyArray]:
    """The next frame; none at the end."""
    async for frame in frames:
        return [frame]
    return []


async def _read(call: Call) -> object:
    try:
        return await call.read()
    except grpc.aio.AioRpcError as failure:
        raise await settled(call, failure) from None


async def _write(call: Call, outgoing: Outgoing) -> None:
    """Until None. A call that has failed tells its reader why."""
    try:
        while (message := await outgoing.get()) is not None:
            await call.write(message)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        return
