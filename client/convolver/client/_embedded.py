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


class EmbeddedServer:
    """A running child. It ends when its standard input does, and so with this process however that ends."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="convolver-")  # readable by this user alone
        self.address = f"unix:{self._folder}/socket"
        self._clients = 0
        self._owner = os.getpid()
        self._lines: list[str] = []
        self._listening = threading.Event()
        self._child = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
            [
                sys.executable,
                "-m",
                "convolver.server",
                "--listen",
                self.address,
                "--http-listen",
                "none",
                "--log-level",
                "warning",
                "--exit-on-eof",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._follow, args=(self._child.stderr,), daemon=True).start()

    @property
    def alive(self) -> bool:
        """Whether the child runs, and is this process's own, not that of a parent before a fork."""
        return self._owner == os.getpid() and self._child.poll() is None

    def wait_until_listening(self) -> None:
        """Raises ServiceUnavailable, with what the child said, where it does not come up."""
        if not self._listening.wait(START_SECONDS) or self._child.poll() is not None:
            self.stop()
            raise ServiceUnavailable(
                f"the embedded server did not start: {' / '.join(self._lines[-5:]) or 'it said nothing'}"
            )

    def hold(self) -> None:
        """One client more."""
        self._clients += 1

    def release(self) -> None:
        """One client less; the last one ends the child."""
        with _LOCK:
            self._clients -= 1
            if not self._clients and self._owner == os.getpid():
                self.stop()

    def stop(self) -> None:
        """Ends the child and removes its folder."""
        if self._child.stdin:
            self._child.stdin.close()
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _follow(self, stderr: IO[str]) -> None:
        """Keeps what the child says before it listens, and passes on what it says afterwards."""
        for line in stderr:
            if self._listening.is_set():
                sys.stderr.write(line)
            elif " listening on " in line:
                self._listening.set()
            else:
                self._lines.append(line.strip())
        self._listening.set()


_SERVERS: list[EmbeddedServer] = []
"""The one of this process, once there is one."""


def acquire() -> EmbeddedServer:
    """This process's server, started if it does not run; its caller releases it.

    Raises ServiceUnavailable where it cannot be started.
    """
    if any(
        importlib.util.find_spec(name) is None
        for name in ("convolver.server", "pydantic_settings", "prometheus_client")
    ):
        raise ServiceUnavailable(
            "no address (argument or CONVOLVER_ADDRESS), and no server to start: pip install 'convolver[server]'"
        )
    with _LOCK:
        if not _SERVERS or not _SERVERS[0].alive:
            server = EmbeddedServer()
            server.wait_until_listening()
            _SERVERS[:] = [server]
        _SERVERS[0].hold()
        return _SERVERS[0]


@atexit.register
def _stop() -> None:
    for server in _SERVERS:
        if server.alive:
            server.stop()
