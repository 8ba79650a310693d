"""Many inputs through one stream, of the blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

from convolver.client._pipeline import Pipeline, checked_in_flight
from convolver.core.errors import BackendFailure

if TYPE_CHECKING:
    from collections.abc import Iterable
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
) -> Iterator[AnyArray]:
    """The outputs, in the order of frames, which are asked for in the caller's thread."""
    room = checked_in_flight(in_flight)

    def outputs() -> Iterator[AnyArray]:
        outgoing = SimpleQueue[bytes | None]()
        with open_stream(iter(outgoing.get, None), composition.parameters) as stream:
            try:
                pipeline = Pipeline(composition, stream.address, stream.timeout, in_flight=room, resend=resend)
                yield from _outputs(pipeline, stream.answers, outgoing, iter(frames))
                outgoing.put(None)
                for _ in stream.answers:  # until it has ended as it should
                    pass
            finally:
                outgoing.put(None)

    return outputs()


def _outputs(
    pipeline: Pipeline, answers: Iterator[bytes], outgoing: SimpleQueue[bytes | None], frames: Iterator[AnyArray]
) -> Iterator[AnyArray]:
    is_more = True
    while True:
        while is_more and pipeline.has_room:
            try:
                frame = next(frames)
            except StopIteration:
                is_more = False
            else:
                outgoing.put(pipeline.send(frame))
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
