"""Many requests on one stream, whatever the client's colour: which are in flight, and whose answer is due."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from convolver.client._answers import stream_answer
from convolver.client._interchange import AnyArray, like
from convolver.core.errors import BackendFailure, ConvolverError, UnknownLayer
from convolver.core.values import number

if TYPE_CHECKING:
    from convolver.client._answers import Item
    from convolver.client._composition import Composition

MOST_IN_FLIGHT = 4096


class Pipeline:
    """At most `in_flight` frames are sent whose outputs have not been taken; outputs come in the order of frames.

    The first frame goes alone where the server may not know a layer: otherwise it would be sent it with each of them.

    Attributes:
        failure: why there are no more frames, where that is an error: the caller's, or that of a frame which cannot be
            sent. To be raised in its place, after the outputs of all frames before it.
    """

    def __init__(
        self, composition: Composition, address: str, timeout: float | None, *, in_flight: int, resend: bool
    ) -> None:
        self._composition, self._address, self._timeout, self._resend = composition, address, timeout, resend
        self._room = in_flight
        self._is_known = not composition.has_held
        self._frames: deque[AnyArray] = deque()
        self._answers: dict[int, Item] = {}
        self._taken = 0
        self.failure: Exception | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every frame's output has been taken."""
        return not self._frames

    @property
    def has_room(self) -> bool:
        """Whether another frame may be sent."""
        return len(self._frames) < (self._room if self._is_known else 1)

    @property
    def is_ready(self) -> bool:
        """Whether the next output is there."""
        return self._taken in self._answers

    def send(self, frame: AnyArray) -> bytes:
        """The frame's request. Raises InvalidConvolution for what shapes can decide."""
        message = self._message(self._taken + len(self._frames), frame)
        self._frames.append(frame)
        return message

    def receive(self, response: bytes) -> bytes | None:
        """Takes an answer in; gives the request to be sent again, with the layers that the server did not know."""
        item = stream_answer(response, self._address, self._timeout)
        place = item.number - self._taken
        if not 0 <= place < len(self._frames) or item.number in self._answers:
            raise BackendFailure(f"the answer's id is {item.number}, and no such request is in flight")
        if isinstance(item.outcome, UnknownLayer) and self._resend:
            return self._message(item.number, self._frames[place], whole=True)
        self._is_known = True
        self._answers[item.number] = item
        return None

    def take(self) -> AnyArray:
        """The next output, of its frame's library. Raises what went wrong with it."""
        outcome, frame = self._answers.pop(self._taken).outcome, self._frames.popleft()
        self._taken += 1
        if isinstance(outcome, ConvolverError):
            raise outcome
        return like(outcome, frame)

    def _message(self, place: int, frame: AnyArray, *, whole: bool = False) -> bytes:
        return self._composition.stream_request(place, frame, self._timeout, whole=whole)


def checked_in_flight(in_flight: int) -> int:
    """1 to MOST_IN_FLIGHT. Raises InvalidConvolution for anything else."""
    return number(in_flight, "in_flight", low=1, high=MOST_IN_FLIGHT)
