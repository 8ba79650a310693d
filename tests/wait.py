"""Waiting for what other threads and processes do: the one place where tests let time pass."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE = 30.0
PAUSE = 0.002


def until(holds: Callable[[], object], what: str) -> None:
    """Returns as soon as `holds()` is true. Fails, naming `what`, where that takes more than DEADLINE seconds."""
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, f"waited {DEADLINE} s for {what}"
        time.sleep(PAUSE)


async def until_in_loop(holds: Callable[[], object], what: str) -> None:
    """`until`, while the event loop goes on."""
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, f"waited {DEADLINE} s for {what}"
        await asyncio.sleep(PAUSE)
