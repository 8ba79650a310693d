"""Many requests on one stream, whatever the client's colour: which are in flight, and whose answer is due."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

from convolver.client._answers import Item, stream_answer
from convolver.client._interchange import AnyArray, like, likeness
from convolver.client._resending import Again, Repeats
from convolver.client._retries import Budget, Tries, is_final
from convolver.client.errors import DeadlineExceeded, ServiceUnavailable
from convolver.core.errors import BackendFailure, ConvolverError, Overloaded, UnknownLayer
from convolver.core.values import number

if TYPE_CHECKING:
    from convolver.client._composition import Composition
    from convolver.client._requests import Request
    from convolver.core.tensors import Array

MOST_IN_FLIGHT = 4096


class Route(NamedTuple):
    """Where a stream leads, the seconds that a request may take, and what its client may repeat."""

    address: str
    timeout: float | None
    budget: Budget


@dataclass(slots=True)
class _Frame:
    """A frame in flight: its message as it was first sent and as it was last, how it may be sent again, what its output
    is like, what was tried, and whether it waited for the leader.
    """

    message: bytes
    last: bytes
    repeats: Repeats[bytes]
    likeness: AnyArray
    tries: Tries
    has_waited: bool = False


class Pipeline:
    """At most `in_flight` frames are sent whose outputs have not been taken; outputs come in the order of frames.

    Where the server may not know a layer, one frame leads: the first, and later the first that was answered so. It goes
    alone and brings the layers; the others wait, so that these travel once and not with each of them.

    Attributes:
        failure: why there are no more frames, where that is an error: the caller's, or that of a frame which cannot be
            sent. To be raised in its place, after the outputs of all frames before it.
    """

    def __init__(self, composition: Composition, route: Route, *, in_flight: int, resend: bool) -> None:
        self._composition, self._route, self._resend = composition, route, resend
        self._room = in_flight
        self._leader = 0 if composition.held else None
        self._waiting: list[_Frame] = []
        self._frames: deque[_Frame] = deque()
        self._answers: dict[int, Item] = {}
        self._later: list[tuple[float, int]] = []  # when the frame of that number is sent again; the soonest first
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
    def is_answered(self) -> bool:
        """Whether no answer is waited for."""
        return len(self._answers) == len(self._frames)

    @property
    def oldest(self) -> int:
        """The number of the oldest frame that has no answer: as it grows, there is progress."""
        return next(n for n in range(self._taken, self._next + 1) if n not in self._answers)

    @property
    def patience(self) -> float | None:
        """Seconds that an answer may be waited for now, until there is something to do: to give up (the oldest frame
        has the timeout from when it is waited for), or to send a frame again.
        """
        now, timeout = time.monotonic(), self._route.timeout
        ends = [when for when, _ in self._later[:1]]
        if timeout is not None:
            self._due = self._due or now + timeout
            ends.append(self._due)
        return max(0.0, min(ends) - now) if ends else None

    def check_patience(self) -> None:
        """Raises DeadlineExceeded where it has come to its end: the server is silent, or it would have said so."""
        if self._due is not None and time.monotonic() >= self._due:
            address, timeout, _ = self._route
            raise DeadlineExceeded(f"{address}: no answer within the timeout of {timeout} s (nor an error)")

    def send(self, frame: AnyArray) -> bytes | Request:
        """The frame's request: a message of the stream; or one that is too large for that, which goes another way, and
        `take_in` is to be told at once what came of it. Raises InvalidConvolution for what shapes can decide.
        """
        request, message = self._composition.request(frame), b""
        if request.is_small:
            message = self._composition.stream_request(self._next, request, self._route.timeout)
            self._route.budget.add_call()
        tries = Tries(self._route.budget, self._route.timeout, time.monotonic())
        self._frames.append(_Frame(message, message, self._repeats(message), likeness(frame), tries))
        return message or request

    def later(self) -> list[bytes]:
        """What is to be sent again now, since the server was overloaded when it came first."""
        messages, now = list[bytes](), time.monotonic()
        while self._later and self._later[0][0] <= now:
            _, number = heappop(self._later)
            messages.append(self._frames[number - self._taken].last)
        return messages

    def unanswered(self) -> list[bytes]:
        """What a new stream begins with, in the place of one that broke: all that is in flight, as it was first sent,
        since this may be another server; but not what is to be sent later.
        """
        self._leader, self._waiting = None, []
        left = {n: frame for n, frame in enumerate(self._frames, self._taken) if n not in self._answers}
        for frame in left.values():
            frame.repeats, frame.last, frame.has_waited = self._repeats(frame.message), frame.message, False
        are_later = {n for _, n in self._later}
        return [frame.message for n, frame in left.items() if n not in are_later]

    def take_in(self, outcome: Array | ConvolverError) -> None:
        """What came of the frame that was sent last."""
        self._answers[self._next - 1] = Item(self._next - 1, outcome)
        if self._leader == self._next - 1:
            self._leader = None

    def receive(self, response: bytes) -> list[Again[bytes]]:
        """Takes an answer in; gives what is to be sent again now, since the server did not know a layer."""
        item = stream_answer(response, self._route.address, self._route.timeout)
        place = item.number - self._taken
        if not 0 <= place < len(self._frames) or item.number in self._answers:
            raise BackendFailure(f"the answer's id is {item.number}, and no such request is in flight")
        frame = self._frames[place]
        if isinstance(item.outcome, UnknownLayer) and not frame.repeats.is_over:
            return self._repeated(item.number, frame, item.outcome)
        if self._is_later(item, frame):
            return []
        self._answers[item.number] = item
        if item.number != self._leader:
            return []
        waiting, self._leader, self._waiting = self._waiting, None, []
        return [frame.repeats.by_digest for frame in waiting]

    def _is_later(self, item: Item, frame: _Frame) -> bool:
        """Whether it is to be sent again later, as the server asks."""
        if not isinstance(item.outcome, ConvolverError):
            return False
        if not is_final(item.outcome):
            frame.tries.note(item.outcome, self._route.address)
        pause = frame.tries.after_overload(item.outcome) if isinstance(item.outcome, Overloaded) else None
        if pause is not None:
            heappush(self._later, (time.monotonic() + pause, item.number))
        return pause is not None

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
        again = frame.repeats.after(unknown)
        frame.last = again.request
        return [again]

    def _repeats(self, message: bytes) -> Repeats[bytes]:
        resend = self._resend and bool(message)
        return Repeats(self._composition, message, self._composition.whole_of_stream, resend=resend)


class Progress:
    """How often streams broke while a pipeline had no progress: as often as a call may be tried."""

    def __init__(self) -> None:
        self._oldest = -1
        self._tries: Tries | None = None

    def tries(self, pipeline: Pipeline, route: Route, broken: ServiceUnavailable) -> Tries:
        """What was tried since the last progress, of which `broken` is the end."""
        if self._tries is None or pipeline.oldest != self._oldest:
            self._oldest = pipeline.oldest
            self._tries = Tries(route.budget, route.timeout, time.monotonic())
        self._tries.note(broken, route.address)
        return self._tries


def checked_in_flight(in_flight: int) -> int:
    """1 to MOST_IN_FLIGHT. Raises InvalidConvolution for anything else."""
    return number(in_flight, "in_flight", low=1, high=MOST_IN_FLIGHT)
