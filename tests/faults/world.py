"""A real server, a proxy before it and a client with an old connection: what a fault is done to."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import IO, TYPE_CHECKING, NamedTuple, Self

from tests.faults import vitals
from tests.faults.calls import UNARY
from tests.faults.proxy import Proxy
from tests.wait import until

from convolver.client import Client
from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.calls import Call
    from tests.faults.vitals import Vitals

REPOSITORY = Path(__file__).parent.parent.parent
START_SECONDS = 60.0
IDLE_SECONDS = 0.5
"""Of a chunked call, after which an impatient server ends it."""

PLAIN = ("--backend=reference", "--threads=2")
"""Its idle time is so long that no call ends by it which is to succeed, however busy this machine is."""

IMPATIENT = (*PLAIN, f"--idle-timeout={IDLE_SECONDS}")
SHARING = (*PLAIN, "--shared-memory")
TORCH = ("--backend=torch", *PLAIN[1:])


class Server:
    """The faulty server's process; `address` and `http` are where it listens."""

    def __init__(self, *flags: str, listen: str = "127.0.0.1:0", http: str = "127.0.0.1:0") -> None:
        command = ["-m", "tests.faults.faulty_server", "--listen", listen, "--http-listen", http, *flags]
        self.process = subprocess.Popen([sys.executable, *command], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
        self._flags = flags
        self.lines = deque[str](maxlen=50)
        self.address = self.http = ""
        self._found = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._found.wait(START_SECONDS), "the server said nothing"
        assert self.address, list(self.lines)

    def end(self, number: signal.Signals) -> int:
        """Sends the signal and waits; the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(START_SECONDS)
        self._reader.join(START_SECONDS)
        if self.process.stderr:
            self.process.stderr.close()
        return code

    def vitals(self) -> Vitals:
        return vitals.of_server(self.process.pid, self.http)

    def metric(self, series: str) -> float:
        """A number of its metrics, 0 where it has not counted that yet."""
        return vitals.metrics(self.http).get(series, 0.0)

    def again(self) -> Server:
        """Another in the place of this one, which has ended."""
        return Server(*self._flags, listen=self.address, http=self.http.removeprefix("http://"))

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if found := re.search(r"listening on (\S+); (http://\S+)", line):
                self.address, self.http = found.groups()
                self._found.set()
        self._found.set()


class Both(NamedTuple):
    """What the server and this process, which is its client, hold."""

    server: Vitals
    client: Vitals


class World:
    """One server for many faults."""

    def __init__(self, *flags: str) -> None:
        self.server = Server(*flags)
        self.proxy = Proxy(self.server.address)
        self.client = Client(self.server.address)
        self.random = Random(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.proxy.__exit__()
        if self.server.process.poll() is None:
            self.server.end(signal.SIGTERM)
        self.server.wait()

    @property
    def in_flight(self) -> float:
        """Requests that the server computes, or that wait for it."""
        return self.server.metric("convolver_in_flight")

    def restart(self) -> None:
        """Another server in the place of the one that has ended, found by the old client."""
        self.server = self.server.again()
        until(self._answers, "the client to find the server that came back")

    def revive(self) -> None:
        """Starts the server again where it has ended."""
        if self.server.process.poll() is not None:
            self.server.wait()
            self.restart()

    def check_serves(self, call: Call = UNARY) -> None:
        """The next call, through the old connection and through a fresh one, gets the right answer."""
        assert self.server.process.poll() is None, f"the server has ended: {list(self.server.lines)}"
        call.check(self.client)
        with Client(self.server.address) as fresh:
            call.check(fresh)

    def settled(self, before: Both) -> Both:
        """What both hold, once that is no more than before."""
        self._tidy()
        server = vitals.settled(before.server, self.server.vitals)
        return Both(server, vitals.settled(before.client._replace(rss=1 << 60, dirty=1 << 60), _own))

    def vitals(self) -> Both:
        """What both hold now."""
        self._tidy()
        until(lambda: self.in_flight == 0, "the server to be idle")
        return Both(self.server.vitals(), _own())

    @contextmanager
    def caller(self, call: Call) -> Iterator[subprocess.Popen[str]]:
        """A process that makes such calls all the time; it is killed in the end, if it is still there."""
        command = [sys.executable, "-m", "tests.faults.calls", call.name, self.server.address]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, cwd=REPOSITORY, text=True, stdin=pipe, stdout=pipe) as process:
            try:
                assert _line(process.stdout) == "calling\n"
                yield process
            finally:
                process.kill()

    def pause(self, seconds: float) -> None:
        """Waits for a random part of so many seconds: to be in the midst of whatever it is."""
        time.sleep(self.random.uniform(0, seconds))

    def _tidy(self) -> None:
        """Leaves one connection, of a new client: the old one may keep memory to use it again."""
        self.proxy.reset_all()
        self.client.close()
        gc.collect()  # what refers to itself may keep connections open, and so the server's memory
        self.client = Client(self.server.address)
        self.client.info()

    def _answers(self) -> bool:
        try:
            self.client.info()
        except ServiceUnavailable:
            return False
        return True


def _own() -> Vitals:
    return vitals.of_process(os.getpid())


def _line(pipe: IO[str] | None) -> str:
    assert pipe
    return pipe.readline()


class Fault(NamedTuple):
    """What goes wrong, what does it once, and the flags of the server it is done to."""

    name: str
    do: Callable[[World], None]
    flags: tuple[str, ...] = PLAIN
