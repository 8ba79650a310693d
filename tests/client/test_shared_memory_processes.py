"""Shared memory where processes come and go: servers that restart, callers that are killed, fork or never close."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.client.shared_memory_calls import SHAPE, WEIGHT, numbers, travelled
from tests.server.hold_calls import mappings, shared, until_nothing_is_shared
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.client import Client, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

pytestmark = pytest.mark.usefixtures("patient_offers")  # the tests see which way requests take


@pytest.fixture(scope="module")
def sharing(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve("--shared-memory")


def answers(client: Client) -> bool:
    try:
        client.info()
    except ServiceUnavailable:
        return False
    return True


def test_a_server_that_comes_back_is_offered_everything_anew(serve: Callable[..., RunningServer]) -> None:
    first = serve("--backend=reference", "--shared-memory")
    with Client(first.address) as client:
        given = client.empty(SHAPE)
        given[...] = numbers()
        expected = client.convolve(given, WEIGHT)
        assert first.stop() == 0
        second = serve("--backend=reference", "--shared-memory", listen=first.address)
        until(lambda: answers(client), "the client to find it")
        np.testing.assert_array_equal(client.convolve(given, WEIGHT), expected)
        assert travelled(second, lambda: client.convolve(given, WEIGHT)) < 2000
        assert shared(second)[0] >= 2


def test_a_server_that_comes_back_without_shared_memory(serve: Callable[..., RunningServer]) -> None:
    first = serve("--backend=reference", "--shared-memory")
    with Client(first.address) as client:
        given = numbers()
        expected = client.convolve(given, WEIGHT)
        assert first.stop() == 0
        second = serve("--backend=reference", listen=first.address)
        until(lambda: answers(client), "the client to find it")
        assert travelled(second, lambda: client.convolve(given, WEIGHT)) > given.nbytes
        np.testing.assert_array_equal(client.convolve(given, WEIGHT), expected)


def test_the_embedded_server_shares_memory() -> None:
    with Client() as client:
        given = numbers()
        output = client.convolve(given, WEIGHT)
        assert client.info().versions
        assert output.base is not None  # memory of the client's, not an array of its own


CALL = """
import sys, numpy as np
from convolver.client import Client
client = Client(sys.argv[1])
given = client.empty((1, 1, 2000, 2000)); given[...] = 1
client.convolve(given, np.ones((1, 1, 3, 3), np.float32))
print("shared", flush=True)
client.convolve(given, np.ones((1, 1, 50, 50), np.float32), algorithm="direct")
"""


def test_a_client_that_is_killed_in_the_midst_of_a_call_leaves_nothing(serve: Callable[..., RunningServer]) -> None:
    running = serve("--backend=reference", "--shared-memory")
    with subprocess.Popen([sys.executable, "-c", CALL, running.address], stdout=subprocess.PIPE) as caller:
        assert caller.stdout
        assert caller.stdout.readline() == b"shared\n"
        until(lambda: metric(running, "convolver_in_flight") == 1, "the second call to run")
        caller.kill()
        assert caller.wait() == -signal.SIGKILL
    until_nothing_is_shared(running)
    with Client(running.address) as client:
        np.testing.assert_array_equal(client.convolve(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2))), 4)
    until(lambda: metric(running, "convolver_in_flight") == 0, "the call to end")
    until(lambda: mappings(running) == 0, "the memory of the call to be unmapped")


LAST = """
import atexit, threading
atexit.register(lambda: print([one.name for one in threading.enumerate() if one.name == "shared memory"]))
"""
"""Registered before the client's, it is called after that."""


def test_a_client_that_is_never_closed_ends_with_its_process(sharing: RunningServer) -> None:
    code = LAST + CALL.rpartition("print")[0]
    done = subprocess.run([sys.executable, "-c", code, sharing.address], capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"[]\n", b"")
    until_nothing_is_shared(sharing)


FORK = """
import os, sys, numpy as np
from convolver.client import Client
client = Client(sys.argv[1])
x, w = np.ones((1, 1, 1000, 1000), np.float32), np.ones((1, 1, 2, 2), np.float32)
kept = client.convolve(x, w)
free = client.convolve(x, w)
del free
child = os.fork()
if not child:
    got = client.convolve(7 * x, w)
    os._exit(0 if (got == 28).all() and (kept == 4).all() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert (kept == 4).all() and (client.convolve(2 * x, w) == 8).all() and (kept == 4).all()
"""


def test_a_forked_process_begins_anew(sharing: RunningServer) -> None:
    environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1"}
    command = [sys.executable, "-W", "ignore", "-c", FORK, sharing.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert done.returncode == 0, done.stderr
