"""Real servers in processes of their own, on ports that the system chooses."""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # as in a server, and before NumPy is loaded

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import hypothesis
import pytest

from convolver.client import Client

# The same examples in every run: a failure is a failure everywhere, and a search for new ones is a run of its own.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")

START_SECONDS = 60.0


class RunningServer:
    """`convolver-server`, or another module, with these flags; `address` and `http` say where it listens, `lines` what
    it said.
    """

    def __init__(self, *flags: str, listen: str = "127.0.0.1:0", module: str = "convolver.server") -> None:
        command = [sys.executable, "-m", module, "--listen", listen, "--http-listen", "127.0.0.1:0", *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.address = self.http = ""
        self.lines: list[str] = []
        self._settled = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._settled.wait(START_SECONDS), "the server said nothing"

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(START_SECONDS)
        self._reader.join(START_SECONDS)
        for pipe in (self.process.stdin, self.process.stderr):
            if pipe:
                pipe.close()
        return code

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            found = re.search(r"listening on (\S+); (http://\S+)", line)
            if found:
                self.address, self.http = found.groups()
                self._settled.set()
        self._settled.set()


@contextmanager
def _started(ended: ExitStack) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with flags; those that nobody has stopped are told to stop at the end, and waited for by `ended`:
    one with PyTorch takes seconds to go.
    """
    with ExitStack() as asking:

        def start(*flags: str, listen: str = "127.0.0.1:0", module: str = "convolver.server") -> RunningServer:
            server = RunningServer(*flags, listen=listen, module=module)
            ended.callback(server.wait)
            asking.callback(server.process.terminate)
            return server

        yield start


@pytest.fixture(scope="session")
def ended() -> Iterator[ExitStack]:
    """What is waited for after all tests."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="module")
def serve(ended: ExitStack) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with flags; those that a test does not stop end with its module."""
    with _started(ended) as start:
        yield start


@pytest.fixture(scope="session")
def serve_all(ended: ExitStack) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers for many modules."""
    with _started(ended) as start:
        yield start


@pytest.fixture(scope="session")
def server(serve_all: Callable[..., RunningServer]) -> RunningServer:
    """One server with all back ends, for all tests that leave it as it is."""
    return serve_all()


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[Client]:
    """A client of that server."""
    with Client(server.address) as client:
        yield client


@pytest.fixture(params=["reference", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each back end in turn."""
    name: str = request.param
    if name == "torch":
        pytest.importorskip("torch", reason="torch is not installed: its back end is not tested")
    return name
