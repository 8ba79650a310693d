"""A call and its second copy, of the blocking client."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

    from convolver.client._retries import Budget

    Sent = grpc.Future[bytes]


def hedged(first: Callable[[], Sent], second: Callable[[], Sent], delay: float | None, budget: Budget) -> bytes:
    """The first good answer: of the second too where there is none after `delay` seconds (None: never) and the budget
    has it. The other call is cancelled. Raises what went wrong with the first, where none is good.
    """
    calls = [first()]
    try:
        try:
            return calls[0].result(timeout=delay)
        except grpc.FutureTimeoutError:
            pass
        if budget.take():
            calls.append(second())
        ended = SimpleQueue["Sent"]()
        for call in calls:
            call.add_done_callback(ended.put)
        for _ in calls:
            call = ended.get()
            if not call.cancelled() and call.exception() is None:
                return call.result()
        return calls[0].result()
    finally:
        for call in calls:
            call.cancel()  # which does nothing to one that has ended
