"""When a call is sent again, whatever the client's colour: what gRPC's own retries of UNAVAILABLE do not do."""

from __future__ import annotations

import os
import random
import threading
import time
from typing import NamedTuple
from weakref import WeakSet

from convolver.client.errors import DeadlineExceeded, ServiceUnavailable
from convolver.core.errors import Attempt, ConvolverError, Overloaded

TRIES = 3
"""How often a call is sent at most: after Overloaded, and by way of chunks where the connection broke."""

PATIENCE = 2.5
"""Seconds, from when a call has found nobody, for which it waits until a server is connected."""

PAUSE = 0.05
"""The longest seconds before a call is sent again whose connection broke, doubled each time."""

JITTER = 0.5
"""The part of what a server asks to wait for that is waited longer, at most."""

BY_GRPC = ", with up to 3 tries of gRPC's own"
"""What is known of a call that gRPC repeats by itself: not how often."""

MOST_TOKENS, OF_A_CALL = 20.0, 0.1
"""Of a budget: of each call a tenth, and each repetition takes one, so that these are a tenth of the calls."""


class Budget:
    """What one client may repeat because servers are overloaded or slow; safe between threads."""

    def __init__(self) -> None:
        self._tokens = MOST_TOKENS
        self.renew()
        _BUDGETS.add(self)

    def renew(self) -> None:
        """In a forked process, where nobody is left who could release the lock."""
        self._lock = threading.Lock()

    def add_call(self) -> None:
        """There is one call more."""
        with self._lock:
            self._tokens = min(MOST_TOKENS, self._tokens + OF_A_CALL)

    def take(self) -> bool:
        """Takes one repetition, if there is one."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


_BUDGETS: WeakSet[Budget] = WeakSet()


def _renew_all() -> None:
    for budget in _BUDGETS:
        budget.renew()


os.register_at_fork(after_in_child=_renew_all)


class Wait(NamedTuple):
    """Seconds of a pause, so that not all come at once; then, until when (of time.monotonic) to wait for a server."""

    pause: float
    until: float


class Tries:
    """What was tried of one call, and whether it may be tried again.

    Args:
        budget: of its client.
        timeout: seconds that the call may take; None is for ever.
        begin: when it began, of time.monotonic.
    """

    def __init__(self, budget: Budget, timeout: float | None, begin: float) -> None:
        self._budget, self._begin, self._again = budget, begin, 0
        self._end = None if timeout is None else begin + timeout
        self.attempts: tuple[Attempt, ...] = ()

    def note(self, error: ConvolverError, address: str, *, by_grpc: bool = False) -> None:
        """One try has failed so, which gRPC may have repeated where it does; the error carries all of them."""
        if error.attempts:  # of the calls of which this one consists
            self.attempts += error.attempts
        else:
            more = BY_GRPC if by_grpc and not isinstance(error, Overloaded) else ""
            self.attempts += (Attempt(address, time.monotonic() - self._begin, f"{_said(error)}{more}"),)
        error.attempts = self.attempts

    def after_overload(self, error: Overloaded) -> float | None:
        """Seconds to wait before the next try, not less than the server asks for; None where there is none."""
        seconds = error.retry_after * random.uniform(1, 1 + JITTER)  # noqa: S311 - no secret
        is_too_late = self._end is not None and time.monotonic() + seconds >= self._end
        if self._again >= TRIES - 1 or is_too_late or not self._budget.take():
            return None
        self._again += 1
        return seconds

    def after_break(self) -> Wait | None:
        """What to wait for before the next try where a connection broke, or there was none; None where there is none.
        Costs nothing of the budget: all that were in flight are sent again, and nobody who is there gets them twice.
        """
        now = time.monotonic()
        if self._again >= TRIES - 1 or (self._end is not None and now >= self._end):
            return None
        self._again += 1
        pause = random.uniform(0, PAUSE * 2 ** (self._again - 1))  # noqa: S311 - no secret
        until = now + PATIENCE
        return Wait(pause, until if self._end is None else min(until, self._end))


def is_final(error: ConvolverError) -> bool:
    """Whether it says something of the request, and not of the moment: what was tried tells nothing then."""
    return not isinstance(error, (Overloaded, ServiceUnavailable, DeadlineExceeded))


def _said(error: ConvolverError) -> str:
    if isinstance(error, Overloaded):
        return f"overloaded, to come again in {error.retry_after:g} s"
    return "no answer" if isinstance(error, DeadlineExceeded) else "unavailable"
