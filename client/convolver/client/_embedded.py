"""The server of a process's own: the real one, in a child process on a private unix socket, one for all clients of the
process.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from typing import IO

from convolver.client.errors import ServiceUnavailable

START_SECONDS = 60.0
STOP_SECONDS = 10.0

_LOCK = threading.Lock()

_NEEDED = ("convolver.server", "grpc_reflection", "prometheus_client", "pydantic_settings")


_COMMAND = (
    sys.executable,
    "-P",  # a file of the current folder that is called like a module is not that module
    "-m",
    "convolver.server",
    "--http-listen=none",
    "--log-level=warning",
    "--drain-delay=0",
    "--exit-on-eof",
    "--shared-memory",
)


class EmbeddedServer:
    """A running child. It ends when its standard input does, and so with this process however that ends."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="convolver-")  # readable by this user alone
        self.address = f"unix:{self._folder}/socket"
        self._clients = 0
        self._owner = os.getpid()
        self._lines: list[str] = []
        self._listening = False
        self._settled = threading.Event()
        self._child = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
            [*_COMMAND, "--listen", self.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C at the terminal is for this process, which may well go on
        )
        self._follower = threading.Thread(target=self._follow, args=(self._child.stderr,), daemon=True)
        self._follower.start()

    @property
    def own(self) -> bool:
        """Whether this process started the child; after a fork its parent did."""
        return self._owner == os.getpid()

    @property
    def alive(self) -> bool:
        """Whether the child is this process's own and runs."""
        return self.own and self._child.poll() is None

    def wait_until_listening(self) -> None:
        """Raises ServiceUnavailable, with what the child said, where it does not come up."""
        has_ended = self._settled.wait(START_SECONDS)
        if not self._listening:
            how = f"and ended with status {self._child.wait()}" if has_ended else f"within {START_SECONDS:g} s"
            said = " / ".join(self._lines[-5:]) or "it said nothing"
            raise ServiceUnavailable(f"the embedded server did not start {how}: {said}")

    def hold(self) -> None:
        """One client more."""
        self._clients += 1

    def release(self) -> None:
        """One client less; the last one ends the child."""
        with _LOCK:
            self._clients -= 1
            if not self._clients and self.own:
                self.stop()

    def stop(self) -> None:
        """Ends the child and removes its folder; a second time does nothing."""
        if self._child.stdin:
            self._child.stdin.close()
        self._child.terminate()  # processes that were forked from this one may hold the other end of the pipe open
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._follower.join(STOP_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _follow(self, stderr: IO[str]) -> None:
        """Keeps what the child says before it listens, and passes on what it says afterwards."""
        with stderr:
            for line in stderr:
                if self._listening:
                    sys.stderr.write(line)
                elif " listening on " in line:
                    self._listening = True
                    self._settled.set()
                else:
                    self._lines.append(line.strip())
        self._settled.set()


_SERVERS: list[EmbeddedServer] = []
"""The one of this process, once there is one."""


def acquire() -> EmbeddedServer:
    """This process's server, started if it does not run; its caller releases it.

    Raises ServiceUnavailable where it cannot be started.
    """
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise ServiceUnavailable(
            "no address (argument or CONVOLVER_ADDRESS), and no server to start: pip install 'convolver[server]'"
        )
    with _LOCK:
        if not _SERVERS or not _SERVERS[0].alive:
            _stop()
            _SERVERS[:] = [EmbeddedServer()]
            try:
                _SERVERS[0].wait_until_listening()
            except BaseException:
                _SERVERS.pop().stop()
                raise
        _SERVERS[0].hold()
        return _SERVERS[0]


@atexit.register
def _stop() -> None:
    for server in _SERVERS:
        if server.own:
            server.stop()
