"""Many inputs through one stream, of the blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

import grpc

from convolver.client._pipeline import Pipeline, checked_in_flight
from convolver.core.errors import BackendFailure

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from contextlib import AbstractContextManager

    from convolver.client._composition import Composition
    from convolver.client._interchange import AnyArray
    from convolver.core.parameters import Parameters


OpenStream = Callable[[Iterator[bytes], "Parameters"], "AbstractContextManager[Stream]"]
"""Opens a stream for these requests; what fails in the context is raised as the client's errors."""


class Stream(NamedTuple):
    """An open stream: the answers as they come, where it leads, and the seconds that a request may take."""

    answers: Iterator[bytes]
    address: str
    timeout: float | None


def mapped(
    open_stream: OpenStream, composition: Composition, frames: Iterable[AnyArray], *, in_flight: int, resend: bool
) -> Generator[AnyArray]:
    """The outputs, in the order of frames, which are asked for in the caller's thread."""
    room = checked_in_flight(in_flight)

    def outputs() -> Generator[AnyArray]:
        outgoing = SimpleQueue[bytes | None]()
        try:
            with open_stream(iter(outgoing.get, None), composition.parameters) as stream:
                pipeline = Pipeline(composition, stream.address, stream.timeout, in_flight=room, resend=resend)
                yield from _outputs(pipeline, stream.answers, outgoing, iter(frames))
                outgoing.put(None)
                with suppress(grpc.RpcError):  # how it ends matters to no frame
                    for _ in stream.answers:
                        pass
        finally:
            outgoing.put(None)  # gRPC's thread waits for it, be the stream cancelled
        if pipeline.failure:
            raise pipeline.failure

    return outputs()


def _outputs(
    pipeline: Pipeline, answers: Iterator[bytes], outgoing: SimpleQueue[bytes | None], frames: Iterator[AnyArray]
) -> Iterator[AnyArray]:
    is_more = True
    while True:
        while is_more and pipeline.has_room:
            try:
                outgoing.put(pipeline.send(next(frames)))
            except StopIteration:
                is_more = False
            except Exception as failure:  # noqa: BLE001 - whatever the caller's iterable raises
                pipeline.failure, is_more = failure, False
        if pipeline.is_ready:
            yield pipeline.take()
        elif pipeline.is_empty:
            return
        else:
            _receive(pipeline, answers, outgoing)


def _receive(pipeline: Pipeline, answers: Iterator[bytes], outgoing: SimpleQueue[bytes | None]) -> None:
    response = next(answers, None)
    if response is None:
        raise BackendFailure("the stream has ended, and not every request is answered")
    again = pipeline.receive(response)
    if again is not None:
        outgoing.put(again)
