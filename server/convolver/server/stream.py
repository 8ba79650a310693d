"""ConvolveStream: many requests in flight on one call, each answered when it is done."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import code_pb2, status_pb2

from convolver.core.errors import InvalidConvolution
from convolver.core.status import to_status
from convolver.core.wire import join, split
from convolver.server import metrics
from convolver.server._errors_interceptor import as_error
from convolver.server.callers import OfCall, OfStream
from convolver.server.messages import read, refuse_unknown, taken_out
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import status_pb2 as own_status_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from convolver.server.callers import Release
    from convolver.server.calls import Calls
    from convolver.server.requests import Requests

    Context = grpc.aio.ServicerContext[Any, Any]

_CONVOLUTION = 2
"""The field's number in ConvolveStreamRequest."""

_LONGEST_TIMEOUT = 1e9
"""Seconds; more of them are for ever."""


class ConvolveStream:
    """One call. At most `window` requests are taken whose answers have not gone out: a caller who does not read stops
    being read.
    """

    def __init__(self, requests: Requests, calls: Calls, context: Context, window: int) -> None:
        self._requests, self._calls, self._context = requests, calls, context
        self._window, self._writing = asyncio.Semaphore(window), asyncio.Lock()
        self._caller = OfCall(context)
        self._in_flight: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, messages: AsyncIterator[bytes]) -> None:
        """Answers until the caller has no more, or the server drains: then the call ends with UNAVAILABLE. Raises
        InvalidConvolution for a message that is none, to whose id nothing can be answered. What was taken before is
        answered first.
        """
        try:
            drained = await self._all(messages)
        finally:
            for task in self._tasks:  # the call has ended
                task.cancel()
        if drained:
            await self._context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining: try another")

    async def _all(self, messages: AsyncIterator[bytes]) -> bool:
        """Takes requests and finishes them; whether it was drained."""
        try:
            drained = await self._calls.unless_draining(self._take(messages))
        except Exception:
            await self._finish()  # what was taken before is answered first
            raise
        await self._finish()
        return drained

    async def _take(self, messages: AsyncIterator[bytes]) -> None:
        while True:
            await self._window.acquire()
            message = await anext(messages, None)
            if message is None:
                return
            self._begin(message)
            del message  # the next may never come

    def _begin(self, message: bytes) -> None:
        received = time.perf_counter()
        metrics.RECEIVED_BYTES.inc(len(message))
        header, entries = split(message)
        rest, convolution = taken_out(header, _CONVOLUTION)
        request = read(pb.ConvolveStreamRequest, rest)
        task = asyncio.create_task(self._answer(request, convolution, entries, received))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _finish(self) -> None:
        """Waits for what is in flight. Raises what writing an answer raised."""
        if self._tasks:
            await asyncio.gather(*self._tasks)

    async def _answer(
        self, request: pb.ConvolveStreamRequest, convolution: bytes, entries: list[memoryview], received: float
    ) -> None:
        releases: list[Release] = []
        try:
            answer = await self._outcome(request, convolution, entries, received, releases.append)
            del entries
            with suppress(grpc.aio.InternalError):  # the caller has left, and gRPC cancels the call
                async with self._writing:
                    await self._context.write(answer)
                metrics.SENT_BYTES.inc(len(answer))
        finally:
            for release in releases:
                release()
            self._window.release()

    async def _outcome(
        self,
        request: pb.ConvolveStreamRequest,
        convolution: bytes,
        entries: list[memoryview],
        received: float,
        when_gone: Callable[[Release], None],
    ) -> bytes:
        """The answer's message: a result, or what went wrong."""
        if request.id in self._in_flight:
            taken = InvalidConvolution(f"id is {request.id}, which is in flight on this stream already", "id")
            return _failed(request.id, to_status(as_error(taken)))
        self._in_flight.add(request.id)
        try:
            refuse_unknown(request, "request")
            seconds, envelope = _seconds(request), partial(_succeeded, request.id)
            caller = OfStream(self._caller, seconds, when_gone)
            async with asyncio.timeout(seconds):
                return await self._requests.answer(convolution, entries, received, envelope, caller)
        except TimeoutError:
            own = f"request's timeout of {request.timeout_seconds} s"
            text = f"not done within the {own if request.timeout_seconds else 'deadline of the stream'}"
            return _failed(request.id, status_pb2.Status(code=code_pb2.DEADLINE_EXCEEDED, message=text))
        except Exception as error:  # noqa: BLE001  # this is the edge, as in the interceptor
            return _failed(request.id, to_status(as_error(error)))
        finally:
            self._in_flight.discard(request.id)


def _seconds(request: pb.ConvolveStreamRequest) -> float | None:
    if not request.HasField("timeout_seconds"):
        return None
    seconds = request.timeout_seconds
    if not seconds > 0:
        raise InvalidConvolution(f"timeout_seconds is {seconds}; it must be above 0", "timeout_seconds")
    return None if math.isinf(seconds) or seconds > _LONGEST_TIMEOUT else seconds


def _succeeded(number: int, result: bytes) -> bytes:
    header = pb.ConvolveStreamResponse(id=number).SerializeToString()
    return join(header, [result], field=pb.ConvolveStreamResponse.RESULT_FIELD_NUMBER, filler=None)


def _failed(number: int, status: status_pb2.Status) -> bytes:
    own = own_status_pb2.Status.FromString(status.SerializeToString())
    return pb.ConvolveStreamResponse(id=number, status=own).SerializeToString()
