"""When a second copy of a call is sent, whatever the client's colour: after what 95 of 100 such calls take."""

from __future__ import annotations

import os
import threading
from collections import deque
from weakref import WeakSet

SAMPLES, FEWEST = 100, 20
"""Latencies of one kind of call that are kept, and with how many of them there is a percentile."""

PERCENTILE = 0.95

KINDS = 256
"""Kinds of calls whose latencies are kept."""

PURE = frozenset(["GetInfo", "Plan"])
"""The methods that are hedged beside Convolve: each of whose requests is a kind of its own."""


class Latencies:
    """What calls of each kind took lately, in seconds; safe between threads. A kind is what is asked without the data:
    the header of a request.
    """

    def __init__(self) -> None:
        self._kinds: dict[bytes, deque[float]] = {}
        self.renew()
        _ALL.add(self)

    def renew(self) -> None:
        """In a forked process, where nobody is left who could release the lock."""
        self._lock = threading.Lock()

    def add(self, kind: bytes, seconds: float) -> None:
        """One call has been answered after so many seconds."""
        with self._lock:
            if kind not in self._kinds and len(self._kinds) == KINDS:
                del self._kinds[next(iter(self._kinds))]
            self._kinds.setdefault(kind, deque(maxlen=SAMPLES)).append(seconds)

    def percentile(self, kind: bytes) -> float | None:
        """What all but the slowest of them take; None while too few are known."""
        with self._lock:
            known = sorted(self._kinds.get(kind, ()))
        return known[int(PERCENTILE * len(known))] if len(known) >= FEWEST else None


_ALL: WeakSet[Latencies] = WeakSet()


def _renew_all() -> None:
    for latencies in _ALL:
        latencies.renew()


os.register_at_fork(after_in_child=_renew_all)
