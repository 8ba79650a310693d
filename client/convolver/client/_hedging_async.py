"""A call and its second copy, of the asynchronous client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from convolver.client._retries import Budget

    Sent = Awaitable[bytes]


async def hedged(first: Callable[[], Sent], second: Callable[[], Sent], delay: float | None, budget: Budget) -> bytes:
    """The first good answer: of the second too where there is none after `delay` seconds (None: never) and the budget
    has it. The other call is cancelled. Raises what went wrong with the first, where none is good.
    """
    calls = [asyncio.ensure_future(first())]
    try:
        pending = set(calls)
        await asyncio.wait(pending, timeout=delay)
        if not calls[0].done() and budget.take():
            calls.append(asyncio.ensure_future(second()))
            pending.add(calls[1])
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for call in done:
                if not call.cancelled() and call.exception() is None:
                    return call.result()
        return await calls[0]
    finally:
        for call in calls:
            call.cancel()  # which does nothing to one that has ended
        await asyncio.gather(*calls, return_exceptions=True)
