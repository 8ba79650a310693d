"""Requests that are worth shared memory, and how much of them has travelled all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from tests.server.layer_calls import metric

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

BYTES = "convolver_received_bytes_total"
SHAPE = (2, 3, 512, 512)
"""6 MiB of float32."""


def numbers(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray[Any, Any]:
    """Small integers, whose sums are exact."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


WEIGHT = numbers((4, 3, 3, 3), 1)


def travelled(running: RunningServer, call: Callable[[], object]) -> float:
    """Bytes of messages that the call has sent."""
    before = metric(running, BYTES)
    call()
    return metric(running, BYTES) - before
