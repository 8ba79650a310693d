"""The messages of one ConvolveChunked: what comes, what goes, and how long each may take."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from convolver.core.errors import InvalidConvolution
from convolver.core.wire import join, split
from convolver.server import metrics
from convolver.server.frames import forget
from convolver.server.messages import known, taken_out
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from convolver.server.incoming import IncomingTensors

Result = TypeVar("Result")

LARGEST_DATA = 2**21
"""Bytes of data in one message: they are copied on the event loop."""

LEAVING_SECONDS = 0.05
"""For a call to be cancelled whose messages have ended too early: gRPC says that first of a caller who has left."""

_CONVOLUTION = 1
"""The field's number in ConvolveChunkedRequest."""


class StalledError(Exception):
    """The other side has neither sent nor taken a byte for too long; the text says how far it had come."""


async def unless_stalled(call: Awaitable[Result], context: grpc.aio.ServicerContext[Any, Any]) -> Result:
    """What `call` returns; where it raises StalledError the caller's call ends with DEADLINE_EXCEEDED. What an error's
    frames hold, be it tensors, is let go of: to end a call may take until its caller reads.
    """
    try:
        return await call
    except StalledError as error:
        forget(error)
        text = str(error)
    except BaseException as error:
        forget(error)
        raise
    with suppress(grpc.aio.InternalError):  # its caller has left meanwhile, and hears nothing
        await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
    raise asyncio.CancelledError


class Messages:
    """The messages of a stream, of which one with data has to come every `idle_seconds`: empty ones are no sign of
    life.
    """

    def __init__(self, messages: AsyncIterator[bytes], idle_seconds: float) -> None:
        self._messages, self._idle = messages, idle_seconds
        self.alive()

    def alive(self) -> None:
        """Data has come, or it is not the caller who was waited for."""
        self._last = asyncio.get_running_loop().time()

    async def next(self, when: str) -> bytes | None:
        """The next message, None after the last. Raises StalledError; `when` says how far the caller had come."""
        try:
            async with asyncio.timeout_at(self._last + self._idle):
                return await anext(self._messages, None)
        except TimeoutError:
            text = f"nothing came for {self._idle} s (--idle-timeout) {when}"
            raise StalledError(text) from None


class Incoming:
    """The caller's side of a ConvolveChunked."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self._data: Sequence[memoryview] = ()

    async def header(self) -> bytes:
        """The serialised Convolution of the first message. Raises InvalidConvolution where there is none."""
        message = await self._messages.next("before the header came")
        convolution, self._data = (None, ()) if message is None else _parts(message)
        if convolution is None:
            raise InvalidConvolution("the first message has no convolution", "convolution")
        return convolution

    async def data(self, tensors: IncomingTensors, come: Progress) -> None:
        """Takes all data, up to the end of the caller's stream. Raises InvalidConvolution for too little, too much, and
        a second header; StalledError.
        """
        data, self._data = self._data, ()
        self._messages.alive()  # it was the server that let it wait
        while True:
            for part in data:
                tensors.take(part)
            if data:
                self._messages.alive()
                come.advance(tensors.come)
            message = await self._messages.next(f"when {tensors.come} of {tensors.bytes} bytes had come")
            if message is None:
                break
            convolution, data = _parts(message)
            if convolution is not None:
                raise InvalidConvolution("a later message has a second convolution; the first has it", "convolution")
        if tensors.come < tensors.bytes:
            await asyncio.sleep(LEAVING_SECONDS)
        tensors.check_complete()
        come.advance(tensors.come)


def with_data(message: bytes) -> tuple[bytes, Sequence[memoryview]]:
    """All but the data of a message of a stream, and its entries of data that are not empty. Raises as `split`, and
    InvalidConvolution for more than LARGEST_DATA.
    """
    header, data = split(message)
    size = sum(part.nbytes for part in data)
    if size > LARGEST_DATA:
        raise InvalidConvolution(f"a message has {size} bytes of data; it may have {LARGEST_DATA}", "data")
    return header, [part for part in data if part]


def _parts(message: bytes) -> tuple[bytes | None, Sequence[memoryview]]:
    """The serialised Convolution, if the message has one, and its data."""
    metrics.RECEIVED_BYTES.inc(len(message))
    header, data = with_data(message)
    if not header:
        return None, data
    rest, convolution = taken_out(header, _CONVOLUTION)
    if rest:
        known(pb.ConvolveChunkedRequest, rest)
    return convolution if len(rest) < len(header) else None, data


class Outgoing:
    """The answer's messages."""

    def __init__(self, context: grpc.aio.ServicerContext[Any, Any], idle_seconds: float) -> None:
        self._context, self._idle = context, idle_seconds
        self._gone = 0

    async def begin(self) -> None:
        """Says that there will be an answer, before anything may end the call while a message is being written: gRPC
        then thinks that it has said nothing yet, says it again, and never ends the call.
        """
        with suppress(grpc.aio.InternalError):  # the caller has left, and gRPC cancels the call
            await self._context.send_initial_metadata(())

    async def send(self, header: bytes, data: Sequence[memoryview] = ()) -> None:
        """One message. Raises StalledError where the caller does not take it."""
        message = join(header, data, filler=None)
        await self._written(message)
        metrics.SENT_BYTES.inc(len(message))
        self._gone += sum(part.nbytes for part in data)

    async def _written(self, message: bytes) -> None:
        """After the time the writing itself goes on, as the context of a served call has it (MetricsInterceptor)."""
        try:
            async with asyncio.timeout(self._idle):
                with suppress(grpc.aio.InternalError):  # the caller has left, and gRPC cancels the call
                    await self._context.write(message)
        except TimeoutError:
            text = f"nothing was taken for {self._idle} s (--idle-timeout) when {self._gone} bytes had gone"
            raise StalledError(text) from None


class Progress:
    """A number of bytes that grows, and who waits for it."""

    def __init__(self) -> None:
        self._bytes = 0
        self._moved = asyncio.Event()

    def advance(self, to: int) -> None:
        """It has come so far."""
        self._bytes = to
        self._moved.set()

    async def reach(self, target: int) -> None:
        """Returns once it has come so far; one at a time may wait."""
        while self._bytes < target:
            self._moved.clear()
            await self._moved.wait()
