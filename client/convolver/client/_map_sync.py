"""Many inputs through one stream, of the blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import grpc

from convolver.client._composition import HeldWeights
from convolver.client._pipeline import Pipeline, checked_in_flight
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
    """An open stream: the answers as they come, where it leads, the seconds that a request may take, and the putting of
    a layer on the same server.
    """

    answers: Iterator[bytes]
    address: str
    timeout: float | None
    put: Callable[[HeldWeights], None]


OpenStream = Callable[[Iterator[bytes], "Composition"], "AbstractContextManager[Stream]"]
"""Opens a stream for these requests; what fails in the context is raised as the client's errors."""


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
        outgoing = SimpleQueue[bytes | None]()
        try:
            with open_stream(iter(outgoing.get, None), composition) as stream:
                pipeline = Pipeline(composition, stream.address, stream.timeout, in_flight=room, resend=resend)
                traffic = _Traffic(stream, outgoing, answered)
                yield from _outputs(pipeline, traffic, iter(frames))
                traffic.end()
        finally:
            outgoing.put(None)  # gRPC's thread waits for it, be the stream cancelled
        if pipeline.failure:
            raise pipeline.failure

    return outputs()


class _Traffic:
    """Both directions of a stream. A thread takes answers in as they come: gRPC's iterator cannot be asked whether
    there is one.
    """

    def __init__(
        self, stream: Stream, outgoing: SimpleQueue[bytes | None], answered: Callable[[Request], Reply]
    ) -> None:
        self._put, self._outgoing, self._answered = stream.put, outgoing, answered
        self._incoming = SimpleQueue["Answer"]()
        Thread(target=_read, args=(stream.answers, self._incoming), daemon=True).start()

    def send(self, request: bytes | Request, pipeline: Pipeline) -> None:
        """Puts a request behind the others; waits for the answer to one that is too large for that, whose frame may be
        overwritten afterwards.
        """
        if isinstance(request, bytes):
            self._outgoing.put(request)
            return
        try:
            [output] = self._answered(request).tensors
            pipeline.take_in(output)
        except ConvolverError as failure:
            pipeline.take_in(failure)

    def receive_all(self, pipeline: Pipeline) -> None:
        """Hands over the answers that have come."""
        while not self._incoming.empty():
            self._hand(self._incoming.get(), pipeline)

    def receive(self, pipeline: Pipeline) -> None:
        """Waits for an answer and hands it over."""
        try:
            self._hand(self._incoming.get(timeout=pipeline.patience), pipeline)
        except Empty:
            raise pipeline.overdue() from None

    def end(self) -> None:
        """Says that there is no more, and waits for the stream's end. How it ends matters to no frame."""
        self._outgoing.put(None)
        with suppress(Empty):
            self._incoming.get(timeout=FAREWELL)

    def _hand(self, answer: Answer, pipeline: Pipeline) -> None:
        if answer is None:
            raise BackendFailure("the stream has ended, and not every request is answered")
        if isinstance(answer, grpc.RpcError):
            raise answer
        for put, message in pipeline.receive(answer):
            if put is not None:
                self._put(put)
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
