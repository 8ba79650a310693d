"""Servers that go away and come back, and clients that many threads and processes use meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.client.colours import colours
from tests.contract import ANSWER, IMAGE, KERNEL

from convolver.client import Client, DeadlineExceeded, ServiceUnavailable, _retries

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.colours import Called, Calls
    from tests.conftest import RunningServer

LARGE = np.ones((1, 1, 700, 700), np.float32)
"""It goes in chunks."""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls wait for a server as long as its start may take here."""
    monkeypatch.setattr(_retries, "PATIENCE", 60.0)


CALLS: dict[str, Calls] = {
    "unary": lambda client: client.conv2d(IMAGE, KERNEL),
    "plan": lambda client: client.plan((1, 1, 3, 3), (1, 1, 2, 2)),
    "layer": lambda client: client.layer(KERNEL)(IMAGE),
    "chunks": lambda client: client.conv2d(LARGE, KERNEL),
}


@pytest.mark.usefixtures("patient")
def test_a_call_waits_for_a_server_that_restarts(serve: Callable[..., RunningServer]) -> None:
    running = serve("--backend=reference")
    with Client(running.address) as client, ThreadPoolExecutor(len(CALLS)) as threads:
        expected = {name: calls(client) for name, calls in CALLS.items()}
        running.process.kill()
        running.wait()
        waiting = {name: threads.submit(calls, client) for name, calls in CALLS.items()}
        serve("--backend=reference", listen=running.address)
        for name, answer in waiting.items():
            np.testing.assert_equal(answer.result(), expected[name])


@pytest.mark.usefixtures("patient")
@colours
def test_a_client_that_comes_before_its_server_waits_for_it(
    serve: Callable[..., RunningServer], called: Called
) -> None:
    gone = serve("--backend=reference")
    gone.process.kill()
    gone.wait()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(called, gone.address, CALLS["unary"])
        serve("--backend=reference", listen=gone.address)
        np.testing.assert_array_equal(waiting.result(), ANSWER)


@colours
def test_no_server_is_waited_for_beyond_the_timeout(monkeypatch: pytest.MonkeyPatch, called: Called) -> None:
    monkeypatch.setattr(_retries, "PATIENCE", 1e6)
    with pytest.raises((ServiceUnavailable, DeadlineExceeded)):
        called("127.0.0.1:1", lambda client: client.conv2d(IMAGE, KERNEL, timeout=0.3))


@pytest.mark.usefixtures("patient")
def test_threads_that_share_a_client_do_not_notice_that_servers_are_killed(serve: Callable[..., RunningServer]) -> None:
    servers = [serve("--backend=reference") for _ in range(2)]
    is_over = threading.Event()
    with Client(",".join(running.address for running in servers)) as client, ThreadPoolExecutor(16) as threads:
        layer = client.layer(KERNEL)
        client.conv2d(IMAGE, KERNEL)

        def calls(thread: int) -> int:
            done = 0
            while not is_over.is_set():
                output = (layer(thread * IMAGE), client.conv2d(thread * IMAGE, KERNEL))[done % 2]
                np.testing.assert_array_equal(output, thread * ANSWER)
                done += 1
            return done

        working = [threads.submit(calls, thread) for thread in range(16)]
        try:
            for place in range(2):
                servers[place].process.kill()
                servers[place].wait()
                servers[place] = serve("--backend=reference", listen=servers[place].address)
                with Client(servers[place].address) as other:  # it is there, before the next one goes
                    other.info()
        finally:
            is_over.set()
        assert min(thread.result() for thread in working) > 0


HELD_LOCKS = """
import os, sys, threading
import numpy as np
from convolver.client import Client

client = Client(sys.argv[1], timeout=30, hedge=True)
image, kernel = np.ones((1, 1, 3, 3), np.float32), np.ones((1, 1, 2, 2), np.float32)
client.conv2d(image, kernel)
held, leave = threading.Event(), threading.Event()

def hold():
    with client._lock, client._budget._lock, client._latencies._lock:
        held.set()
        leave.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if not child:
    assert (client.conv2d(image, kernel) == 4).all()
    client.close()
    os._exit(0)
print(os.waitpid(child, 0)[1])
leave.set()
client.close()
"""


def test_a_forked_process_may_call_whatever_another_thread_held(server: RunningServer) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HELD_LOCKS, server.address], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (0, "0\n"), ended.stderr


CALLERS = """
import os, sys
from convolver.client import _identity
print(_identity.metadata(), flush=True)
if not os.fork():
    print(_identity.metadata(), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_forked_process_is_another_caller() -> None:
    ended = subprocess.run([sys.executable, "-c", CALLERS], capture_output=True, text=True, timeout=60, check=True)
    parent, child = ended.stdout.splitlines()
    assert parent != child
    assert parent.startswith("(('convolver-client', '")
