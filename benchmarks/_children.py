"""Processes that end with this one: services, and those that call them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections import deque
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, cast

from convolver.client.bench._processes import PROC

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

START_SECONDS = 120.0
STOP_SECONDS = 20.0


class Ended(Exception):
    """A process did not start, or ended; the text says how."""


class Child:
    """A process that ends with its standard input; what it says on stderr is kept, the last lines of it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], stderr: int) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, **environment},
            process_group=0,  # with what it starts in turn; Ctrl-C at the terminal is for this process, which ends it
        )
        self._said: deque[str] = deque(maxlen=20)
        self._before: deque[str] = deque(maxlen=20)  # on its standard output, before it listens
        self._followers: list[threading.Thread] = []
        self._follow(self.process.stderr)

    def asked(self, line: str) -> str:
        """The line that answers this one. Raises Ended."""
        with suppress(BrokenPipeError):
            pipe = cast("IO[str]", self.process.stdin)
            pipe.write(f"{line}\n")
            pipe.flush()
        answer = cast("IO[str]", self.process.stdout).readline()
        if not answer:
            raise Ended(self.last_words())
        return answer

    def ready(self) -> str:
        """Where it listens, once it does: a port, or addresses with blanks between. Raises Ended."""
        timer = threading.Timer(START_SECONDS, self._kill)
        timer.start()
        for line in cast("IO[str]", self.process.stdout):
            found = re.fullmatch(r"(\d+)\s*|.* listening on (.*?)(?:;.*)?\s*", line)
            if found:
                timer.cancel()
                self._follow(self.process.stdout)
                return str(found[1] or found[2].replace(",", ""))
            self._before.append(line.strip())
        timer.cancel()
        raise Ended(self.last_words())

    def last_words(self) -> str:
        """How it ended, once it has."""
        status = self.process.wait(STOP_SECONDS)
        for follower in self._followers:
            follower.join(STOP_SECONDS)
        return f"ended with status {status}: {self._last_line()}"

    def _last_line(self) -> str:
        return next((line for line in [*reversed(self._said), *reversed(self._before)] if line), "")

    def stop(self) -> None:
        """Ends its standard input, and it, if it does not end by itself."""
        with suppress(BrokenPipeError):
            cast("IO[str]", self.process.stdin).close()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._kill()
            self.process.wait()
        for follower in self._followers:
            follower.join(STOP_SECONDS)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _follow(self, pipe: IO[str] | None) -> None:
        def follow() -> None:
            self._said.extend(line.strip() for line in pipe or ())

        self._followers.append(threading.Thread(target=follow, daemon=True))
        self._followers[-1].start()


@contextmanager
def child(
    *command: str, environment: Mapping[str, str] | None = None, stderr: int = subprocess.PIPE
) -> Iterator[Child]:
    """A process for as long as the context lasts; `environment` is beside this process's own."""
    process = Child(command, environment or {}, stderr)
    try:
        yield process
    finally:
        process.stop()


def descendants(pid: int) -> list[int]:
    """The process and all that it started, and they in turn."""
    parents: dict[int, int] = {}
    for path in PROC.glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for parent in found:
        found += [one for one, its in parents.items() if its == parent]
    return found
