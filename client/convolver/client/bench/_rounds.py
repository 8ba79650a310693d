"""One round: a load, with both ends' processes watched."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from convolver.client.bench._cells import Round
from convolver.client.bench._load import Call, offer
from convolver.client.bench._processes import Meter, Processes

if TYPE_CHECKING:
    from collections.abc import Sequence


def one_round(calls: Sequence[Call], seconds: float, failures: tuple[type[Exception], ...], server: Meter) -> Round:
    """`offer`, and what this process and the server used meanwhile."""
    client = Processes([os.getpid()])
    client.start()
    server.start()
    begun = time.process_time()
    load = offer(calls, seconds, failures)
    used = time.process_time() - begun  # finer than the clock ticks of /proc
    return Round(load, client.stop()._replace(cpu_seconds=used), server.stop())
