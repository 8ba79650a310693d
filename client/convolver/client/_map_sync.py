"""Many inputs through one stream, of the blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from convolver.client._composition import HeldWeights
from convolver.client._pipeline import Pipeline, Progress, Route, checked_in_flight
from convolver.client._retries import Tries
from convolver.client.errors import ServiceUnavailable
from convolver.core.errors import BackendFailure, ConvolverError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from contextlib import AbstractContextManager

    from convolver.client._composition import Composition
    from convolver.client._interchange import AnyArray
    from convolver.client._requests import Reply, Request

    Answer = bytes | grpc.RpcError | None

FAREWELL = 1.0
"""Seconds that a server may take to end a stream whose requests are all answered."""


class Stream(NamedTuple):
    """An open stream and where it leads; a context in which what fails is raised as the client's errors; the putting of
    a layer on the same server; and the wait for a server in its place, which says whether to open another.
    """

    call: Any
    route: Route
    failures: Callable[[], AbstractContextManager[None]]
    put: Callable[[HeldWeights], None]
    recovers: Callable[[Tries], bool]


OpenStream = Callable[[Iterator[bytes], "Composition"], Stream]
"""Opens a stream for these requests."""


def mapped(
    open_stream: OpenStream,
    answered: Callable[[Request], Reply],
    composition: Composition,
    frames: Iterable[AnyArray],
    *,
    in_flight: int,
    resend: bool,
) -> Generator[AnyArray]:
    """The outputs, in the order of frames, which are asked for in the caller's thread. `answered` is for those that are
    too large for the stream.
    """
    room = checked_in_flight(in_flight)

    def outputs() -> Generator[AnyArray]:
        traffic = _Traffic(open_stream, composition, answered)
        try:
            pipeline = Pipeline(composition, traffic.route, in_flight=room, resend=resend)
            yield from _outputs(pipeline, traffic, iter(frames))
            traffic.end()
        finally:
            traffic.stop()
        if pipeline.failure:
            raise pipeline.failure

    return outputs()


class _Traffic:
    """Both directions of a stream, and of the next one where it breaks. A thread takes answers in as they come: gRPC's
    iterator cannot be asked whether there is one.
    """

    def __init__(self, open_stream: OpenStream, composition: Composition, answered: Callable[[Request], Reply]) -> None:
        self._open_stream, self._composition, self._answered = open_stream, composition, answered
        self._progress = Progress()
        self._open()

    @property
    def route(self) -> Route:
        """Where it leads."""
        return self._stream.route

    def send(self, request: bytes | Request, pipeline: Pipeline) -> None:
        """Puts a request behind the others; waits for the answer to one that is too large for that, whose frame may be
        overwritten afterwards.
        """
        if isinstance(request, bytes):
            self._outgoing.put(request)
            if self._broken is not None:
                self._resume(self._broken, pipeline)
            return
        try:
            [output] = self._answered(request).tensors
            pipeline.take_in(output)
        except ConvolverError as failure:
            pipeline.take_in(failure)

    def receive_all(self, pipeline: Pipeline) -> None:
        """Hands over the answers that have come, and sends what is to be sent again by now."""
        while not self._incoming.empty():
            self._take(self._incoming.get(), pipeline)
        for message in pipeline.later():
            self._outgoing.put(message)

    def receive(self, pipeline: Pipeline) -> None:
        """Waits until an answer comes and hands it over, or there is something to be sent again."""
        try:
            answer = self._incoming.get(timeout=pipeline.patience)
        except Empty:
            pipeline.check_patience()
        else:
            self._take(answer, pipeline)

    def end(self) -> None:
        """Says that there is no more, and waits for the stream's end. How it ends matters to no frame."""
        self._outgoing.put(None)
        if self._broken is None:
            with suppress(Empty):
                self._incoming.get(timeout=FAREWELL)

    def stop(self) -> None:
        """Ends the stream."""
        self._outgoing.put(None)  # gRPC's thread waits for it, be the stream cancelled
        self._stream.call.cancel()  # which does nothing to one that has ended

    def _open(self) -> None:
        self._broken: ServiceUnavailable | None = None
        self._outgoing, self._incoming = SimpleQueue[bytes | None](), SimpleQueue["Answer"]()
        self._stream = self._open_stream(iter(self._outgoing.get, None), self._composition)
        Thread(target=_read, args=(self._stream.call, self._incoming), daemon=True).start()

    def _take(self, answer: Answer, pipeline: Pipeline) -> None:
        try:
            with self._stream.failures():
                self._hand(answer, pipeline)
        except ServiceUnavailable as broken:
            self._broken = broken
            if not pipeline.is_answered:  # else it matters to the next frame, if there is one
                self._resume(broken, pipeline)

    def _resume(self, broken: ServiceUnavailable, pipeline: Pipeline) -> None:
        """By another stream, where there will be one. Raises `broken` where not."""
        tries = self._progress.tries(pipeline, self.route, broken)
        self.stop()
        if not self._stream.recovers(tries):
            raise broken
        self._open()
        for message in pipeline.unanswered():
            self._outgoing.put(message)

    def _hand(self, answer: Answer, pipeline: Pipeline) -> None:
        if answer is None:
            raise BackendFailure("the stream has ended, and not every request is answered")
        if isinstance(answer, grpc.RpcError):
            raise answer
        for put, message in pipeline.receive(answer):
            if put is not None:
                self._stream.put(put)
            self._outgoing.put(message)


def _read(answers: Iterator[bytes], incoming: SimpleQueue[Answer]) -> None:
    """The answers, and last None or the error with which the stream has ended."""
    end: grpc.RpcError | None = None
    try:
        for answer in answers:
            incoming.put(answer)
    except grpc.RpcError as failure:
        end = failure
    incoming.put(end)


def _outputs(pipeline: Pipeline, traffic: _Traffic, frames: Iterator[AnyArray]) -> Iterator[AnyArray]:
    is_more = True
    while True:
        traffic.receive_all(pipeline)
        if pipeline.is_ready:
            yield pipeline.take()
        elif is_more and pipeline.has_room:
            try:
                request = pipeline.send(next(frames))
            except StopIteration:
                is_more = False
            except Exception as failure:  # noqa: BLE001 - whatever the caller's iterable raises
                pipeline.failure, is_more = failure, False
            else:
                traffic.send(request, pipeline)
        elif pipeline.is_empty:
            return
        else:
            traffic.receive(pipeline)
