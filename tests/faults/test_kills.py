"""Processes that are killed or stopped in the midst of calls of every kind."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.faults.calls import CALLS, CHUNKED, PATIENCE, SHARED, Call
from tests.faults.world import PLAIN, SHARING, Fault, World
from tests.wait import until

from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from subprocess import Popen

MOMENTS = 0.1
"""Seconds within which a process is hit, after its first call."""

SERVER_STOPPED, CLIENT_STOPPED, CHUNKS_STOPPED = 0.25, 1.0, 2.5
"""Seconds for which a process is stopped: of a client that sends chunks, longer than the server waits for them."""

WITH_AN_END = (*PLAIN, "--idle-timeout=2")
"""A server that gives up on a stopped client, though not on one that this machine lets wait for a while."""


def flags_for(call: Call) -> tuple[str, ...]:
    """A server that shares memory would not be sent chunks by a client of its own host."""
    return SHARING if call is SHARED else PLAIN


def flags_to_give_up(call: Call) -> tuple[str, ...]:
    return WITH_AN_END if call is CHUNKED else flags_for(call)


def kill_client(world: World, call: Call) -> None:
    with world.caller(call) as process:
        world.pause(MOMENTS)
        process.kill()
        assert process.wait() == -signal.SIGKILL


def kill_server(world: World, call: Call) -> None:
    """Whoever calls hears that it is gone, or has his answer; the old client finds the next one."""
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(until_it_fails, world, call)
        world.pause(MOMENTS)
        world.server.end(signal.SIGKILL)
        calling.result(2 * PATIENCE)
    world.restart()


def until_it_fails(world: World, call: Call) -> None:
    """Calls, and checks the answers; that it ends is due to the error that one of them gets."""
    with suppress(ServiceUnavailable):
        while True:
            call.check(world.client)


def stop_server(world: World, call: Call) -> None:
    """A call that it is stopped in is answered afterwards."""
    with ThreadPoolExecutor(1) as thread:
        begun = [thread.submit(call.check, world.client) for _ in range(4)]
        world.pause(MOMENTS)
        with stopped(world.server.process):
            time.sleep(SERVER_STOPPED)
        for one in begun:
            one.result(2 * PATIENCE)


def stop_client(world: World, call: Call) -> None:
    """The server does not wait for it; once it goes on its next call is answered."""
    with world.caller(call) as process:
        world.pause(MOMENTS)
        with stopped(process):
            time.sleep(CHUNKS_STOPPED if call is CHUNKED else CLIENT_STOPPED)
            until(lambda: world.in_flight == 0, "the server to give up on a stopped client")
            world.check_serves()
        process.communicate(timeout=2 * PATIENCE)
        assert process.returncode == 0


@contextmanager
def stopped(process: Popen[str]) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


FAULTS = [
    *(Fault(f"client killed, {call.name}", partial(kill_client, call=call), flags_for(call)) for call in CALLS),
    *(Fault(f"client stopped, {call.name}", partial(stop_client, call=call), flags_to_give_up(call)) for call in CALLS),
    *(Fault(f"server stopped, {call.name}", partial(stop_server, call=call), flags_for(call)) for call in CALLS),
    *(Fault(f"server killed, {call.name}", partial(kill_server, call=call), flags_for(call)) for call in CALLS),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_server_survives(fault: Fault, endures: Callable[[Fault], None]) -> None:
    endures(fault)
