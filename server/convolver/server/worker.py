"""A worker: a whole server in a process that the supervisor starts as `python -m convolver.server.worker`.

Both ends write lines. To standard input come the settings and then commands, `metrics` and `stop`; its end stops the
worker too, so that it ends with its parent, however that ends. To standard output goes `[kind, content]` in JSON:
`ready`; the `metrics`; the `error` that prevented the start.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import sys
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING

from convolver.server import logs
from convolver.server.process import serve
from convolver.server.settings import Settings

if TYPE_CHECKING:
    from convolver.server.server import Server

METRICS, STOP = b"metrics\n", b"stop\n"


class Parent:
    """The process at the other ends of standard input and output."""

    def __init__(self) -> None:
        self._commands = io.FileIO(0, closefd=False)  # unbuffered: a thread may be reading when the process ends
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # a library that prints does not write to the parent

    def settings(self) -> Settings:
        """What the parent says first."""
        return Settings.model_validate_json(self._commands.readline()).of_one_worker

    def tell(self, kind: str, content: object = None) -> None:
        """One line; without a parent none."""
        with suppress(BrokenPipeError):
            self._answers.write(f"{json.dumps([kind, content])}\n")
            self._answers.flush()

    def obeyed_by(self, server: Server) -> None:
        """Says that the server can be called, and has it do what the parent wants."""
        loop = asyncio.get_running_loop()
        Thread(target=self._obey, args=(server, loop), name="parent", daemon=True).start()
        self.tell("ready")

    def _obey(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        from convolver.server.merged_metrics import families
        from convolver.server.metrics import REGISTRY

        for command in iter(self._commands.readline, b""):
            if command == METRICS:
                self.tell("metrics", families(REGISTRY))
            elif command == STOP:
                _ask_to_stop(server, loop)
        _ask_to_stop(server, loop)


def _ask_to_stop(server: Server, loop: asyncio.AbstractEventLoop) -> None:
    with suppress(RuntimeError):  # it has ended by itself
        loop.call_soon_threadsafe(server.request_stop)


def main() -> None:
    """Serve until the parent, or a signal, wants it to end; exit code 0, or 1 where it cannot start."""
    parent = Parent()
    settings = parent.settings()
    logs.set_up(settings.log_level, "%(name)s[%(process)d]")
    try:
        serve(settings, parent.obeyed_by)
    except (OSError, ImportError) as error:
        parent.tell("error", str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
