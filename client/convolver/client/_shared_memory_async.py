"""Shared memory of the asynchronous client."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import grpc

from convolver.client._connection import asynchronous_channel_of_lease
from convolver.client._identity import metadata
from convolver.client._regions import Memory, Pool
from convolver.client._shared_memory import (
    HOLD,
    HOLD_SECONDS,
    TRIES,
    Lease,
    Prospects,
    SharedRequest,
    is_lost,
    tag_of,
)
from convolver.core.errors import ConvolverError, InvalidConvolution, Overloaded, Unsupported
from convolver.v1 import shared_memory_service_pb2 as hold_pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from convolver.client._requests import Reply, Request


class AsyncSharedMemory:
    """What one client shares with its server."""

    def __init__(self) -> None:
        self.address = ""  # known once the client connects
        self.pool = Pool(self._forget)
        self._prospects = Prospects()
        self._is_closed = self._leads_elsewhere = False
        self._lock = asyncio.Lock()
        self._stream: _Stream | None = None
        self._forgotten: weakref.finalize[..., AsyncSharedMemory] | None = None

    async def exchanged(
        self,
        channel: grpc.aio.Channel,
        request: Request,
        seconds: float | None,
        send: Callable[[bytes], Awaitable[bytes]],
    ) -> Reply | None:
        """The answer to what `send` is given; None where there is no memory, or it is not to be shared. An offer waits
        for so many seconds at most. Raises what `send` raises.
        """
        placed = SharedRequest.of(request, self.pool) if self._prospects.are_good([]) else None
        for _ in range(TRIES):
            held = await self._held(channel, placed.memories, seconds) if placed else None
            if placed is None or held is None:
                break
            try:
                return placed.reply(await send(await asyncio.to_thread(placed.message, held.ids)))
            except (InvalidConvolution, Unsupported) as error:
                if not is_lost(error, held):
                    placed.spoil()
                    raise
                self._end(held)
            except BaseException:
                placed.spoil()
                raise
        return None

    def close(self) -> None:
        """Ends the lease, and lets go of memory as soon as nobody uses it."""
        self._is_closed = True
        if self._stream is not None:
            self._stream.cancel()
        self.pool.close()

    async def ended(self) -> None:
        """Waits until the lease has ended, and its channel is closed."""
        if self._stream is not None:
            await self._stream.ended()

    async def _held(self, channel: grpc.aio.Channel, memories: Sequence[Memory], seconds: float | None) -> Lease | None:
        """The lease of all of these; None where there is none."""
        async with self._lock:
            if self._is_closed or not self._prospects.are_good(memories):
                return None
            stream = self._opened(channel)
            patience = HOLD_SECONDS if seconds is None else min(HOLD_SECONDS, seconds)
            try:
                async with asyncio.timeout(patience):
                    await stream.hold(memories)
            except ConvolverError as refusal:
                if not (isinstance(refusal, Overloaded) and self.pool.trim()):
                    self._prospects.refused(refusal)
                return None
            except TimeoutError:
                stream.cancel()
                if patience == HOLD_SECONDS:  # else it is the call that was in a hurry
                    self._prospects.unanswered()
                return None
            except BaseException:  # the task is cancelled: nobody knows any more what the server holds
                stream.cancel()
                raise
            return None if stream.lease.has_ended else stream.lease

    def _opened(self, channel: grpc.aio.Channel) -> _Stream:
        """The stream; another one where there is none, or it has ended."""
        if self._stream is None or self._stream.lease.has_ended or self._stream.channel is not channel:
            if self._stream is not None:
                self._stream.cancel()
            if self._forgotten is not None:
                self._forgotten.detach()
            own = None if self._leads_elsewhere else asynchronous_channel_of_lease(self.address)
            self._stream = _Stream(channel, own, self._prospects)
            self._forgotten = weakref.finalize(self, self._stream.cancel_soon)  # where nobody closes the client
            self._forgotten.atexit = False
        return self._stream

    def _end(self, lease: Lease) -> None:
        if self._stream is not None and self._stream.lease is lease:
            self._leads_elsewhere |= not lease.has_ended
            self._stream.cancel()

    def _forget(self, memory: Memory) -> None:
        """Called by whatever lets go of an array, in any thread."""
        if self._stream is not None:
            self._stream.release(memory)


class _Stream:
    """A Hold call, read by a task of its own, on a channel of its own or, where that leads to another worker of the
    server, on that of the calls.
    """

    def __init__(self, channel: grpc.aio.Channel, own: grpc.aio.Channel | None, prospects: Prospects) -> None:
        self.channel, self.lease, self._own, self._prospects = channel, Lease(), own, prospects
        self._loop = asyncio.get_running_loop()
        self._outgoing = asyncio.Queue[bytes | None]()
        self._waiting: dict[int, asyncio.Queue[hold_pb.HoldResponse | None]] = {}
        call: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = (own or channel).stream_stream(HOLD)
        self._call = call(self._steps(), metadata=metadata())
        self._reading = asyncio.create_task(self._read())

    async def hold(self, memories: Sequence[Memory]) -> None:
        """Has them held. Raises ConvolverError for a refusal; returns early where the call ends."""
        for memory in memories:
            if memory not in self.lease.ids and not await self._hold(memory):
                return

    def release(self, memory: Memory) -> None:
        """Lets go of it, without a wait."""
        step = self.lease.release(memory)
        if step is not None:
            self._soon(partial(self._outgoing.put_nowait, step))

    def cancel(self) -> None:
        """Ends the call."""
        self.lease.has_ended = True
        self._call.cancel()

    async def ended(self) -> None:
        """Waits until nothing is read any more, and its own channel is closed."""
        await asyncio.wait([self._reading])

    def cancel_soon(self) -> None:
        """The same from any thread."""
        self._soon(self.cancel)

    def _soon(self, action: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(action)

    async def _hold(self, memory: Memory) -> bool:
        tag, offer = self.lease.offer(memory)
        self._waiting[tag] = asyncio.Queue()
        try:
            challenge = await self._answer(tag, offer)
            held = challenge and await self._answer(tag, self.lease.prove(memory, challenge))
            if held:
                self.lease.hold(memory, held)
            return held is not None
        finally:
            del self._waiting[tag]

    async def _answer(self, tag: int, step: bytes) -> hold_pb.HoldResponse | None:
        """None where the call has ended."""
        if self.lease.has_ended:
            return None
        self._outgoing.put_nowait(step)
        return await self._waiting[tag].get()

    async def _steps(self) -> AsyncIterator[bytes]:
        while (step := await self._outgoing.get()) is not None:
            yield step

    async def _read(self) -> None:
        try:
            while isinstance(message := await self._call.read(), bytes):
                answer = hold_pb.HoldResponse.FromString(message)
                waiting = self._waiting.get(tag_of(answer))
                if waiting is not None:  # nobody waits for what is released
                    waiting.put_nowait(answer)
            self._prospects.ended(await self._call.code())
        except grpc.aio.AioRpcError as failure:
            self._prospects.ended(failure.code())
        except asyncio.CancelledError:  # as a task's end it would keep the stream and its channels alive
            if not self.lease.has_ended:
                raise
        finally:
            self.lease.has_ended = True
            self._outgoing.put_nowait(None)
            for waiting in self._waiting.values():
                waiting.put_nowait(None)
            if self._own is not None:
                await self._own.close()
