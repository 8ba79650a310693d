"""`convolver-server`, also `python -m convolver.server`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit code 0, 1 where it cannot listen or something is not installed, 2 for wrong
    settings.
    """
    try:
        from convolver.core import environment
        from convolver.server import allocator
        from convolver.server.settings import load

        settings = load()
        environment.prepare(settings.threads)
        allocator.keep_buffers()
        from convolver.server.server import Server  # after the settings, so that --help and a wrong flag are quick
    except ImportError as error:
        sys.exit(f"convolver-server: {error}; pip install 'convolver[server]'")

    async def serve() -> Server:
        server = Server(settings)
        await server.run()
        return server

    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        server = asyncio.run(serve())
    except (OSError, ImportError) as error:
        sys.exit(f"convolver-server: {error}")
    if server.busy:
        os._exit(0)  # Python would wait for the threads of what outlasted its grace


if __name__ == "__main__":
    main()
