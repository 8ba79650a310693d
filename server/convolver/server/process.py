"""A whole server in this process."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from convolver.core import environment
from convolver.server import allocator
from convolver.server.listening import announce

if TYPE_CHECKING:
    from collections.abc import Callable

    from convolver.server.server import Server
    from convolver.server.settings import Settings


def announced(server: Server) -> None:
    """Says on stderr where the server listens."""
    announce(server.settings, server.addresses, server.http_address)


def serve(settings: Settings, listening: Callable[[Server], None] = announced) -> None:
    """Serves until the process is asked to stop; calls `listening` on the event loop once it can be called. May end the
    process, with exit code 0, where computing outlasts the grace.

    Raises:
        OSError: an address cannot be had.
        ImportError: something is not installed.
    """
    environment.prepare(settings.threads)
    allocator.keep_buffers()
    try:
        from convolver.server.server import Server  # after the settings, which its libraries read as they are loaded
    except ImportError as error:
        raise ImportError(f"{error}; pip install 'convolver[server]'") from error

    async def run() -> Server:
        server = Server(settings)
        await server.run(listening)
        return server

    if asyncio.run(run()).busy:
        os._exit(0)  # Python would wait for the threads of what outlasted its grace
