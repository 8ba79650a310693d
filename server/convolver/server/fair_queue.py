"""Who is next: requests that wait, in an order that is fair between callers and between priorities.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996), twice: between the two priorities, whose shares are
SHARES, and between the callers of one priority, whose shares are equal. What is shared is time: the estimated seconds
of what each runs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, nsmallest
from typing import TYPE_CHECKING

from convolver.core.parameters import Priority

if TYPE_CHECKING:
    from collections.abc import Hashable

    from convolver.server.demand import Demand

SHARES: dict[Priority, int] = {"interactive": 8, "bulk": 1}
"""Of the time, while both wait."""

LEAST_SECONDS = 1e-6
"""That anything counts: what costs nothing would never let others have their turn."""

MOST_CALLERS = 1024
"""Of one priority whose last turns are remembered once they have nothing waiting."""

MOST_GONE = 64
"""Of one priority that have gone and are kept in its heap beside as many as wait."""


@dataclass(eq=False, slots=True)
class Waiting:
    """One that waits, for `demand`; with others of the same `key` it may have one turn together, unless that is None.

    Attributes:
        start: the virtual time at which its turn begins; the queue's affair, as `number`.
        has_gone: it was taken, or has left.
    """

    demand: Demand
    seconds: float
    key: Hashable | None = None
    start: float = 0.0
    number: int = 0
    has_gone: bool = False


@dataclass(eq=False, slots=True)
class _Line:
    """Those of one caller: how many, the virtual time at which the last one's turn begins, and when that is over."""

    count: int = 0
    last: float = 0.0
    finish: float = 0.0


@dataclass(eq=False, slots=True)
class _Class:
    """Those of one priority. `virtual` is the virtual time: the start of whose turn it was. `start` is that of the
    whole class among the classes. `idle` are the lines without anyone, which was last in use last.
    """

    share: int
    heap: list[tuple[float, int, Waiting]] = field(default_factory=list)
    lines: dict[str, _Line] = field(default_factory=dict)
    idle: OrderedDict[str, _Line] = field(default_factory=OrderedDict)
    virtual: float = 0.0
    start: float = 0.0
    count: int = 0

    def push(self, waiting: Waiting) -> None:
        caller = waiting.demand.caller
        line = self.lines.get(caller)
        if line is None:
            line = self.lines[caller] = self.idle.pop(caller) if caller in self.idle else _Line()
        waiting.start = line.last = max(self.virtual, line.finish, line.last if line.count else 0.0)
        line.finish = waiting.start + _seconds(waiting)
        line.count += 1
        self.count += 1
        heappush(self.heap, (waiting.start, waiting.number, waiting))

    def head(self) -> Waiting | None:
        while self.heap and self.heap[0][2].has_gone:
            heappop(self.heap)
        return self.heap[0][2] if self.heap else None

    def take(self, waiting: Waiting) -> None:
        """Before it leaves: its turn has come, be it before that of the head, as company."""
        head = self.head()
        self.virtual = max(self.virtual, head.start if head else 0.0)
        self.start += _seconds(waiting) / self.share

    def leave(self, waiting: Waiting) -> None:
        caller = waiting.demand.caller
        line = self.lines[caller]
        line.count -= 1
        self.count -= 1
        if not line.count:
            self.idle[caller] = self.lines.pop(caller)
        if len(self.idle) > MOST_CALLERS:
            self.idle.popitem(last=False)
        if len(self.heap) > 2 * self.count + MOST_GONE:
            self.heap = [each for each in self.heap if not each[2].has_gone]
            heapify(self.heap)

    def refund(self, waiting: Waiting) -> None:
        """It had no turn, and its caller's next one does not wait for it."""
        self.lines[waiting.demand.caller].finish -= _seconds(waiting)


class FairQueue:
    """Those that wait. `push` and `take` cost the logarithm of their number, `leave` next to nothing."""

    def __init__(self) -> None:
        self._classes = {priority: _Class(share) for priority, share in SHARES.items()}
        self._keyed: dict[Hashable, dict[Waiting, None]] = {}
        self._pushed = 0
        self._virtual = 0.0

    def __len__(self) -> int:
        return sum(each.count for each in self._classes.values())

    def push(self, waiting: Waiting) -> None:
        """One more."""
        own = self._classes[waiting.demand.priority]
        if not own.count:
            own.start = max(own.start, self._virtual)
        self._pushed += 1
        waiting.number = self._pushed
        own.push(waiting)
        if waiting.key is not None:
            self._keyed.setdefault(waiting.key, {})[waiting] = None

    def head(self) -> Waiting | None:
        """Whose turn it is."""
        heads = ((each.start, each.head()) for each in self._classes.values())
        return min(((start, head) for start, head in heads if head), key=lambda pair: pair[0], default=(0, None))[1]

    def take(self, waiting: Waiting) -> None:
        """Its turn has come."""
        own = self._classes[waiting.demand.priority]
        self._virtual = max(self._virtual, min(each.start for each in self._classes.values() if each.count))
        own.take(waiting)
        self._gone(waiting)

    def leave(self, waiting: Waiting) -> None:
        """It does not wait any more, and has not had its turn."""
        if not waiting.has_gone:
            self._classes[waiting.demand.priority].refund(waiting)
            self._gone(waiting)

    def company(self, waiting: Waiting, most: int) -> list[Waiting]:
        """At most so many others of its key, whose turns come first first; those of its own priority before the others,
        whose virtual time is another.
        """
        alike = self._keyed.get(waiting.key, {}) if waiting.key is not None else {}
        others = (other for other in alike if other is not waiting)
        priority = waiting.demand.priority
        return nsmallest(most, others, key=lambda each: (each.demand.priority != priority, each.start))

    def _gone(self, waiting: Waiting) -> None:
        waiting.has_gone = True
        self._classes[waiting.demand.priority].leave(waiting)
        if waiting.key is not None:
            alike = self._keyed[waiting.key]
            del alike[waiting]
            if not alike:
                del self._keyed[waiting.key]


def _seconds(waiting: Waiting) -> float:
    return max(waiting.seconds, LEAST_SECONDS)
