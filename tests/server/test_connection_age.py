"""`--max-connection-age`: connections are renewed, and nobody notices."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.server.worker_processes import convolved
from tests.wait import until

from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

    Serve = Callable[..., RunningServer]

FLAGS = ("--backend=reference", "--max-connection-age=0.5")
CONNECTIONS = 4


def connections_to(running: RunningServer) -> set[str]:
    """The local ends, in hexadecimal, of open connections to the server: proc(5), /proc/net/tcp. gRPC's sockets are
    IPv6's, whatever they reach.
    """
    port = f":{int(running.address.rpartition(':')[2]):04X}"
    tables = [path for path in (Path("/proc/self/net/tcp"), Path("/proc/self/net/tcp6")) if path.exists()]
    rows = [line.split() for path in tables for line in path.read_text().splitlines()[1:]]
    return {local for _, local, remote, state, *_ in rows if remote.endswith(port) and state == "01"}


def test_who_calls_all_the_time_loses_no_call_when_connections_are_renewed(serve: Serve) -> None:
    running = serve(*FLAGS)
    seen: set[str] = set()

    def call_until_renewed() -> None:
        while len(seen) < CONNECTIONS:
            np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
            seen.update(connections_to(running))

    with Client(running.address) as client, ThreadPoolExecutor(4) as threads:
        for calls in [threads.submit(call_until_renewed) for _ in range(4)]:
            calls.result(60)
    assert running.stop() == 0


def test_connections_live_for_ever_unless_told_otherwise(server: RunningServer) -> None:
    with Client(server.address) as client:
        np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
        before = connections_to(server)
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
        assert before
        assert connections_to(server) == before


def test_a_client_that_stays_comes_to_every_worker(serve: Serve) -> None:
    running = serve(*FLAGS, "--workers=2")

    def both_have_answered() -> bool:
        np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
        return sorted(worker for worker, calls in convolved(running).items() if calls) == ["0", "1"]

    with Client(running.address) as client:
        until(both_have_answered, "the other worker")
    assert running.stop() == 0


@pytest.mark.parametrize("grace", ["0.2", "30"])
def test_shared_memory_outlives_connections(serve: Serve, grace: str) -> None:
    running = serve(*FLAGS, "--shared-memory", f"--max-connection-age-grace={grace}")
    image, kernel = np.ones((1, 1, 1024, 1024), np.float32), np.ones((1, 1, 3, 3), np.float32)
    seen: set[str] = set()
    with Client(running.address) as client:
        while len(seen) < CONNECTIONS:
            assert (client.conv2d(image, kernel) == 9).all()
            seen.update(connections_to(running))
    assert running.stop() == 0
