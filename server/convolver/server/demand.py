"""What a request asks of the scheduler, and how much of it lies before whom."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convolver.core.parameters import Priority
from convolver.server.fair_queue import SHARES


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for.

    Attributes:
        held_bytes: those that it holds until it is done: inputs, output and workspace.
        seconds: those that it takes, by an estimate.
        caller: whose it is; callers have equal shares.
        priority: "interactive" or "bulk".
        deadline: when nobody wants it any more, in seconds of the event loop's clock.
        waiting_bytes: those that it holds already while it waits: its message.
        is_learnt: whether the estimate comes from measurements, and not from the cost model alone.
    """

    held_bytes: int
    seconds: float = 0.0
    caller: str = ""
    priority: Priority = "interactive"
    deadline: float = math.inf
    waiting_bytes: int = 0
    is_learnt: bool = False


@dataclass(slots=True)
class _Owed:
    """The demands of a caller that were accepted and are not done, and their estimated seconds."""

    demands: int = 0
    seconds: float = 0.0


class Backlog:
    """The estimated seconds of all that was accepted and is not done, by priority and caller. A caller's are zero again
    with its last demand, whatever they were rounded to on the way; so are those of all.
    """

    def __init__(self) -> None:
        self._callers: dict[Priority, dict[str, _Owed]] = {each: {} for each in SHARES}
        self._totals: dict[Priority, float] = dict.fromkeys(SHARES, 0.0)

    @property
    def seconds(self) -> float:
        """Of all."""
        return sum(self._totals.values())

    def enter(self, demand: Demand) -> None:
        """One more, with all of its seconds."""
        self._callers[demand.priority].setdefault(demand.caller, _Owed()).demands += 1
        self.change(demand, demand.seconds)

    def change(self, demand: Demand, seconds: float) -> None:
        """So much more of a demand that has entered is to be done; less, where it is negative."""
        owed = self._callers[demand.priority][demand.caller]
        owed.seconds = max(0.0, owed.seconds + seconds)
        self._totals[demand.priority] = max(0.0, self._totals[demand.priority] + seconds)

    def leave(self, demand: Demand, seconds: float) -> None:
        """It is done, and so many of its seconds with it."""
        self.change(demand, -seconds)
        callers = self._callers[demand.priority]
        callers[demand.caller].demands -= 1
        if not callers[demand.caller].demands:
            del callers[demand.caller]
        if not callers:
            self._totals[demand.priority] = 0.0

    def before(self, demand: Demand) -> float:
        """What is done before the demand would have been: all of its own caller's, of each other no more than its own
        caller gets, and of the other priority what that one's share is meanwhile.
        """
        callers = self._callers[demand.priority]
        own = callers[demand.caller].seconds if demand.caller in callers else 0.0
        most = own + demand.seconds
        before = own + sum(min(owed.seconds, most) for caller, owed in callers.items() if caller != demand.caller)
        for priority, share in SHARES.items():
            if priority != demand.priority:
                most = (before + demand.seconds) * share / SHARES[demand.priority]
                before += min(self._totals[priority], most)
        return before
