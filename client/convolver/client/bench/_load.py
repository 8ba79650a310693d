"""The load: callers that call one after the other, side by side, for some seconds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

Call = Callable[[], object]
"""One request and its answer."""

PAUSE = 0.02
"""Seconds that a caller waits after an error: what is refused at once would be a load of its own."""

LONGEST_TEXT = 200
"""Characters of an error that are kept, which tell one kind from another."""


@dataclass(frozen=True, slots=True)
class Load:
    """What came of it: `seconds` from the first start to the last end, those of each call that succeeded, and how often
    each error came.
    """

    seconds: float
    latencies: list[float]
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Caller:
    started: float
    ended: float
    latencies: list[float]
    errors: Counter[str]


def offer(calls: Sequence[Call], seconds: float, failures: tuple[type[Exception], ...]) -> Load:
    """Run each of `calls` in a thread of its own, again and again until `seconds` are over, and at least once. Errors
    of the types `failures` are counted; any other ends it and is raised.
    """
    together = threading.Barrier(len(calls))
    with ThreadPoolExecutor(len(calls)) as pool:
        running = [pool.submit(_repeated, call, together, seconds, failures) for call in calls]
    callers = [one.result() for one in running]
    return Load(
        seconds=max(caller.ended for caller in callers) - min(caller.started for caller in callers),
        latencies=[latency for caller in callers for latency in caller.latencies],
        errors=dict(sum((caller.errors for caller in callers), Counter[str]())),
    )


def _repeated(
    call: Call, together: threading.Barrier, seconds: float, failures: tuple[type[Exception], ...]
) -> _Caller:
    latencies: list[float] = []
    errors: Counter[str] = Counter()
    together.wait()
    started = now = time.perf_counter()
    while now == started or now - started < seconds:
        begun = time.perf_counter()
        try:
            call()
        except failures as error:
            errors[described(error)] += 1
            time.sleep(PAUSE)
        else:
            latencies.append(time.perf_counter() - begun)
        now = time.perf_counter()
    return _Caller(started, now, latencies, errors)


def described(error: Exception) -> str:
    """Its class and the start of what it says."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}"[:LONGEST_TEXT]
