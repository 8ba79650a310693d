"""Many requests on one stream, whatever the client's colour: which are in flight, and whose answer is due."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convolver.client._answers import Item, stream_answer
from convolver.client._interchange import AnyArray, like, likeness
from convolver.client._resending import Again, Repeats
from convolver.client.errors import DeadlineExceeded
from convolver.core.errors import BackendFailure, ConvolverError, UnknownLayer
from convolver.core.values import number

if TYPE_CHECKING:
    from convolver.client._composition import Composition
    from convolver.client._requests import Request
    from convolver.core.tensors import Array

MOST_IN_FLIGHT = 4096


@dataclass(slots=True)
class _Frame:
    """A frame in flight: how it may be sent again, what its output is like, and whether it waited for the leader."""

    repeats: Repeats[bytes]
    likeness: AnyArray
    has_waited: bool = False


class Pipeline:
    """At most `in_flight` frames are sent whose outputs have not been taken; outputs come in the order of frames.

    Where the server may not know a layer, one frame leads: the first, and later the first that was answered so. It goes
    alone and brings the layers; the others wait, so that these travel once and not with each of them.

    Attributes:
        failure: why there are no more frames, where that is an error: the caller's, or that of a frame which cannot be
            sent. To be raised in its place, after the outputs of all frames before it.
    """

    def __init__(
        self, composition: Composition, address: str, timeout: float | None, *, in_flight: int, resend: bool
    ) -> None:
        self._composition, self._address, self._timeout, self._resend = composition, address, timeout, resend
        self._room = in_flight
        self._leader = 0 if composition.held else None
        self._waiting: list[_Frame] = []
        self._frames: deque[_Frame] = deque()
        self._answers: dict[int, Item] = {}
        self._taken = 0
        self._due: float | None = None
        self.failure: Exception | None = None

    @property
    def is_empty(self) -> bool:
        """Whether every frame's output has been taken."""
        return not self._frames

    @property
    def has_room(self) -> bool:
        """Whether another frame may be sent."""
        return len(self._frames) < (self._room if self._leader is None else 1)

    @property
    def is_ready(self) -> bool:
        """Whether the next output is there."""
        return self._taken in self._answers

    @property
    def _next(self) -> int:
        """The number of the next frame."""
        return self._taken + len(self._frames)

    @property
    def patience(self) -> float | None:
        """Seconds that an answer may be waited for now: the oldest frame has the timeout from when it is waited for."""
        if self._timeout is None:
            return None
        now = time.monotonic()
        self._due = self._due or now + self._timeout
        return max(0.0, self._due - now)

    def overdue(self) -> DeadlineExceeded:
        """What is raised when patience has come to its end: the server is silent, or it would have said so itself."""
        return DeadlineExceeded(f"{self._address}: no answer within the timeout of {self._timeout} s (nor an error)")

    def send(self, frame: AnyArray) -> bytes | Request:
        """The frame's request: a message of the stream; or one that is too large for that, which goes another way, and
        `take_in` is to be told at once what came of it. Raises InvalidConvolution for what shapes can decide.
        """
        request, message = self._composition.request(frame), b""
        if request.is_small:
            message = self._composition.stream_request(self._next, request, self._timeout)
        resend = self._resend and request.is_small
        repeats = Repeats(self._composition, message, self._composition.whole_of_stream, resend=resend)
        self._frames.append(_Frame(repeats, likeness(frame)))
        return message or request

    def take_in(self, outcome: Array | ConvolverError) -> None:
        """What came of the frame that was sent last."""
        self._answers[self._next - 1] = Item(self._next - 1, outcome)
        if self._leader == self._next - 1:
            self._leader = None

    def receive(self, response: bytes) -> list[Again[bytes]]:
        """Takes an answer in; gives what is to be sent again, since the server did not know a layer."""
        item = stream_answer(response, self._address, self._timeout)
        place = item.number - self._taken
        if not 0 <= place < len(self._frames) or item.number in self._answers:
            raise BackendFailure(f"the answer's id is {item.number}, and no such request is in flight")
        frame = self._frames[place]
        if isinstance(item.outcome, UnknownLayer) and not frame.repeats.is_over:
            return self._repeated(item.number, frame, item.outcome)
        self._answers[item.number] = item
        if item.number != self._leader:
            return []
        waiting, self._leader, self._waiting = self._waiting, None, []
        return [frame.repeats.by_digest for frame in waiting]

    def take(self) -> AnyArray:
        """The next output, of its frame's library. Raises what went wrong with it."""
        outcome, frame = self._answers.pop(self._taken).outcome, self._frames.popleft()
        self._taken += 1
        self._due = None
        if isinstance(outcome, ConvolverError):
            outcome.add_note(f"frame {self._taken - 1}")
            raise outcome
        return like(outcome, frame.likeness)

    def _repeated(self, number: int, frame: _Frame, unknown: UnknownLayer) -> list[Again[bytes]]:
        """By the leader, and by who waited for it in vain: the server may have too little room for all layers."""
        self._due = None
        if self._leader not in (None, number) and not frame.has_waited:
            frame.has_waited = True
            self._waiting.append(frame)
            return []
        if self._leader is None:
            self._leader = number
        return [frame.repeats.after(unknown)]


def checked_in_flight(in_flight: int) -> int:
    """1 to MOST_IN_FLIGHT. Raises InvalidConvolution for anything else."""
    return number(in_flight, "in_flight", low=1, high=MOST_IN_FLIGHT)
