"""Targets with a fault behind the parser, where a few changes of a good request lead: whoever runs them finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest.mock import patch

from tests.fuzz import calls

from convolver.core.plan import Plan
from convolver.server.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.target import Target

    from convolver.server.jobs import Job


def _error() -> None:
    raise ZeroDivisionError("planted")


def _hang() -> None:
    while True:
        pass


def _allocation() -> None:
    bytearray(2**31)


_FAULTS: dict[str, Callable[[], None]] = {
    "planted-error": _error,
    "planted-hang": _hang,
    "planted-allocation": _allocation,
}


def target(name: str) -> Target:
    """ConvolveStream, whose errors are answered and not raised; the server fails where a float kernel is flipped."""
    accept = Engine.accept

    def failing(self: Engine, raw: bytes) -> Job:
        job = accept(self, raw)
        if isinstance(job.plan, Plan) and job.plan.operation.flip and "float" in job.plan.operation.dtype:
            _FAULTS[name]()
        return job

    patch.object(Engine, "accept", failing).start()
    return calls.target("ConvolveStream")
