"""Shared memory of the blocking client."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import grpc

from convolver.client._connection import blocking_channel_of_lease
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
    from collections.abc import Callable, Sequence

    from convolver.client._requests import Reply, Request

    Answers = SimpleQueue[hold_pb.HoldResponse | None]

FAREWELL = 1.0
"""Seconds that a stream may take to end with the process."""


class SharedMemory:
    """What one client, in one process, shares with its server."""

    def __init__(self) -> None:
        self.address = ""  # known once the client connects
        self.pool = Pool(self._forget)
        self._prospects = Prospects()
        self._is_closed = self._leads_elsewhere = False
        self._lock = threading.Lock()
        self._stream: _Stream | None = None
        self._forgotten: weakref.finalize[..., SharedMemory] | None = None

    def exchanged(
        self, channel: grpc.Channel, request: Request, seconds: float | None, send: Callable[[bytes], bytes]
    ) -> Reply | None:
        """The answer to what `send` is given; None where there is no memory, or it is not to be shared. An offer waits
        for so many seconds at most. Raises what `send` raises.
        """
        placed = SharedRequest.of(request, self.pool) if self._prospects.are_good([]) else None
        for _ in range(TRIES):
            held = self._held(channel, placed.memories, seconds) if placed else None
            if placed is None or held is None:
                break
            try:
                return placed.reply(send(placed.message(held.ids)))
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

    def _held(self, channel: grpc.Channel, memories: Sequence[Memory], seconds: float | None) -> Lease | None:
        """The lease of all of these; None where there is none."""
        with self._lock:
            if self._is_closed or not self._prospects.are_good(memories):
                return None
            stream = self._opened(channel)
            patience = HOLD_SECONDS if seconds is None else min(HOLD_SECONDS, seconds)
            try:
                stream.hold(memories, patience)
            except ConvolverError as refusal:
                if not (isinstance(refusal, Overloaded) and self.pool.trim()):
                    self._prospects.refused(refusal)
                return None
            except TimeoutError:
                stream.cancel()
                if patience == HOLD_SECONDS:  # else it is the call that was in a hurry
                    self._prospects.unanswered()
                return None
            except BaseException:  # an interruption: nobody knows any more what the server holds
                stream.cancel()
                raise
            return None if stream.lease.has_ended else stream.lease

    def _opened(self, channel: grpc.Channel) -> _Stream:
        """The stream; another one where there is none, or it has ended."""
        if self._stream is None or self._stream.lease.has_ended or self._stream.channel is not channel:
            if self._stream is not None:
                self._stream.cancel()
            if self._forgotten is not None:
                self._forgotten.detach()
            own = None if self._leads_elsewhere else blocking_channel_of_lease(self.address)
            self._stream = _Stream(channel, own, self._prospects)
            self._forgotten = weakref.finalize(self, self._stream.cancel)  # where nobody closes the client
            self._forgotten.atexit = False
            if self._is_closed:  # meanwhile, by another thread that did not see this stream
                self._stream.cancel()
        return self._stream

    def _end(self, lease: Lease) -> None:
        with self._lock:
            if self._stream is not None and self._stream.lease is lease:
                self._leads_elsewhere |= not lease.has_ended
                self._stream.cancel()

    def _forget(self, memory: Memory) -> None:
        """Called by whatever lets go of an array, be it in the midst of a method of this class."""
        if self._stream is not None:
            self._stream.release(memory)


class _Stream:
    """A Hold call, read by a thread of its own, on a channel of its own or, where that leads to another worker of the
    server, on that of the calls.
    """

    def __init__(self, channel: grpc.Channel, own: grpc.Channel | None, prospects: Prospects) -> None:
        self.channel, self.lease, self._own, self._prospects = channel, Lease(), own, prospects
        self._process = os.getpid()
        self._outgoing = SimpleQueue[bytes | None]()
        self._waiting: dict[int, Answers] = {}
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = (own or channel).stream_stream(HOLD)
        self._call: Any = call(iter(self._outgoing.get, None), metadata=metadata())
        self._reading = threading.Thread(target=self._read, name="shared memory", daemon=True)
        self._reading.start()
        _OPEN.add(self)

    def hold(self, memories: Sequence[Memory], seconds: float) -> None:
        """Has them held. Raises TimeoutError, and ConvolverError for a refusal; returns early where the call ends."""
        end = time.monotonic() + seconds
        for memory in memories:
            if memory not in self.lease.ids and not self._hold(memory, end):
                return

    def release(self, memory: Memory) -> None:
        """Lets go of it, without a wait."""
        step = self.lease.release(memory)
        if step is not None:
            self._outgoing.put(step)

    def cancel(self) -> None:
        """Ends the call, but not from a forked process: it is the parent's."""
        self.lease.has_ended = True
        if self._process == os.getpid():
            self._call.cancel()

    def end(self) -> None:
        """The same, and waits for its thread."""
        self.cancel()
        self._reading.join(FAREWELL)

    def _hold(self, memory: Memory, end: float) -> bool:
        tag, offer = self.lease.offer(memory)
        answers = self._waiting[tag] = SimpleQueue()
        try:
            challenge = self._answer(offer, answers, end)
            held = challenge and self._answer(self.lease.prove(memory, challenge), answers, end)
            if held:
                self.lease.hold(memory, held)
            return held is not None
        finally:
            del self._waiting[tag]

    def _answer(self, step: bytes, answers: Answers, end: float) -> hold_pb.HoldResponse | None:
        """None where the call has ended."""
        if self.lease.has_ended:
            return None
        self._outgoing.put(step)
        try:
            return answers.get(timeout=max(0.0, end - time.monotonic()))
        except Empty:
            raise TimeoutError from None

    def _read(self) -> None:
        try:
            for message in self._call:
                answer = hold_pb.HoldResponse.FromString(message)
                waiting = self._waiting.get(tag_of(answer))
                if waiting is not None:  # nobody waits for what is released
                    waiting.put(answer)
        except grpc.RpcError:
            pass
        finally:
            self._prospects.ended(self._call.code())
            self.lease.has_ended = True
            self._outgoing.put(None)
            for answers in [*self._waiting.values()]:
                answers.put(None)
            if self._own is not None:
                self._own.close()  # here, since it waits for what may be the thread that forgets the client


_OPEN: weakref.WeakSet[_Stream] = weakref.WeakSet()
"""The streams of this process."""

os.register_at_fork(after_in_child=_OPEN.clear)


@atexit.register
def _end_all() -> None:
    """Where clients are not closed: a thread that the interpreter stops in the midst of gRPC may hold a lock for which
    gRPC waits when the call is cleared away.
    """
    for stream in [*_OPEN]:
        stream.end()
