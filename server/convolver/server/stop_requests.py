"""What asks a process to stop: signals, and the end of its standard input."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def watch_signals(stop: Callable[[], None], end: Callable[[int], None]) -> None:
    """The first SIGTERM or SIGINT calls `stop`, another one `end` with the exit code that shells have for it."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        for number in SIGNALS:
            loop.add_signal_handler(number, end, 128 + number)
        stop()

    for number in SIGNALS:
        loop.add_signal_handler(number, first)


def watch_stdin(stop: Callable[[], None]) -> None:
    """Calls `stop` when standard input ends. A pipe or a terminal is waited for; a file, /dev/null and a closed
    standard input have ended already.
    """
    if sys.stdin is None:
        stop()
        return
    stdin, loop = sys.stdin.fileno(), asyncio.get_running_loop()

    def read_until_eof() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            stop()

    try:
        loop.add_reader(stdin, read_until_eof)
    except PermissionError:  # epoll takes no files
        stop()
