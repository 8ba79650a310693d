"""A worker as its parent sees it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from convolver.server.merged_metrics import Family

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable

    from convolver.server.settings import Settings

LONGEST_LINE = 1 << 26
"""Bytes; a worker's metrics are some 100 KB."""


class WorkerProcess:
    """One running worker. `error` is what prevented its start, where it said so."""

    def __init__(self, process: Process, ready: Callable[[], None]) -> None:
        self._process, self._when_ready = process, ready
        self.ready, self.error = False, ""
        self._asked: asyncio.Future[list[Family]] | None = None

    @classmethod
    async def started(cls, settings: Settings, ready: Callable[[], None]) -> WorkerProcess:
        """Starts one with its part of these settings; `ready` is called when it serves. Raises OSError."""
        command = (sys.executable, "-m", "convolver.server.worker")
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=PIPE,
            limit=LONGEST_LINE,
            process_group=0,  # Ctrl-C at the terminal is for the parent, which stops them all
        )
        worker = cls(process, ready)
        worker._write(settings.model_dump_json())
        return worker

    async def ended(self) -> int:
        """Its exit code, negative where a signal ended it, once it has ended."""
        assert self._process.stdout  # noqa: S101  # a pipe, as asked for
        async for line in self._process.stdout:
            with suppress(ValueError, TypeError):  # cut off in the midst of a line
                self._take(*json.loads(line))
        self.ready = False
        return await self._process.wait()

    def stop(self) -> None:
        """Asks it to drain and to end."""
        self._write("stop")

    def kill(self) -> None:
        """Ends it at once. By the system's call, as asyncio does from Python 3.13 on: its kill before that looks first
        whether the process has ended, and takes the exit code that asyncio waits for (cpython issue 87744).
        """
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def metrics(self, seconds: float) -> list[Family] | None:
        """What it shows, None if it does not answer in time. There is one question at a time: who asks meanwhile, or
        after the time, gets the answer to that.
        """
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().create_future()
            self._write("metrics")
        with suppress(TimeoutError):
            return await asyncio.wait_for(asyncio.shield(self._asked), seconds)
        return None

    def _write(self, line: str) -> None:
        assert self._process.stdin  # noqa: S101  # a pipe, as asked for
        self._process.stdin.write(f"{line}\n".encode())

    def _take(self, kind: str, content: Any) -> None:  # noqa: ANN401  # JSON of any kind
        if kind == "ready":
            self.ready = True
            self._when_ready()
        elif kind == "error":
            self.error = content
        elif self._asked and not self._asked.done():
            self._asked.set_result([Family(*family) for family in content])
