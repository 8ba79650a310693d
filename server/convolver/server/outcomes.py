"""What work in a compute thread returned or raised, and the thread itself."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from convolver.server.frames import forget

if TYPE_CHECKING:
    from collections.abc import Callable

NICE = 5
"""Of compute threads: who receives, refuses and answers comes before them (docs/decisions/0016-scheduling.md)."""

Outcome = tuple[Any, None] | tuple[None, Exception]
"""What work returned, or raised."""


def give_way() -> None:
    """In a compute thread, for all that it starts: the event loop and gRPC's threads have the cores first."""
    with suppress(OSError):  # where that is forbidden they compete
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def outcome_of(work: Callable[[], object]) -> Outcome:
    """What the work returns, or raises: as it may be raised where it is waited for."""
    try:
        return work(), None
    except BaseException as error:  # noqa: BLE001  # a thread that died would keep its slot
        forget(error)
        return None, raisable(error)


def raisable(error: BaseException) -> Exception:
    """The error; where it is no Exception, which would end the event loop, or a StopIteration, which would end whatever
    waits, one that has it as its cause.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    made = RuntimeError(f"the work raised {type(error).__name__}: {error}")
    made.__cause__ = error
    return made
