"""Two servers under the SDK's load, of which one after the other restarts or is killed: no call fails."""

from __future__ import annotations

import signal
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.faults import endurance
from tests.faults.endurance import TIMES, Row
from tests.faults.load import Load
from tests.faults.world import Server
from tests.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FLAGS = ("--backend=reference", "--threads=1", "--drain-delay=0.5")
ROUNDS = 20 if TIMES >= 20 else 2
"""In each of which both servers go down, one after the other."""


def is_ready(server: Server) -> bool:
    try:
        with urllib.request.urlopen(f"{server.http}/readyz", timeout=5) as answer:  # noqa: S310 - our own http://
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def is_found(server: Server) -> bool:
    """Whether it is ready, and is called."""
    series = 'grpc_server_handling_seconds_count{grpc_method="Convolve",grpc_service="convolver.v1.ConvolutionService"'
    return is_ready(server) and server.metric(series + ',grpc_type="unary"}') > 0


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    with ExitStack() as stack:
        servers = [Server(*FLAGS), Server(*FLAGS)]
        stack.callback(lambda: [one.end(signal.SIGKILL) for one in servers])
        yield servers


def restart(server: Server) -> Server:
    """As an operator does: SIGTERM, and the next begins when this one has ended by itself."""
    assert server.end(signal.SIGTERM) == 0
    return server.again()


def kill(server: Server) -> Server:
    """As the system does, without a word."""
    server.end(signal.SIGKILL)
    return server.again()


def goes_round(servers: list[Server], replaced: Callable[[Server], Server], row: Row) -> None:
    """Replaces one server after the other, each once the one before is ready and is called again."""
    begin = time.monotonic()
    with Load(",".join(server.address for server in servers)) as load:
        until(lambda: load.is_under_way, "calls of all kinds")
        for _ in range(row.times):
            for i, server in enumerate(servers):
                servers[i] = replaced(server)
                until(partial(is_found, servers[i]), "the callers to find it")
    row.seconds = time.monotonic() - begin
    assert not load.failures, f"{len(load.failures)} of {load.made.total()} calls failed: {sorted(set(load.failures))}"
    row.fault += f", {load.made.total()} calls"
    row.wrong = ""


@pytest.mark.parametrize("replaced", [restart, kill], ids=["rolling restart", "kill -9 of one"])
@pytest.mark.timeout(1800)
def test_no_call_fails(servers: list[Server], replaced: Callable[[Server], Server], rows: list[Row]) -> None:
    row = Row(f"two servers under load: {replaced.__name__}", ROUNDS, 0.0)
    rows.append(row)
    endurance.noted(row, lambda: goes_round(servers, replaced, row))
