"""`convolver-server`, also `python -m convolver.server`."""

from __future__ import annotations

from convolver.server.settings import load


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit code 0, 1 where it cannot listen or a back end is missing, 2 for wrong
    settings.
    """
    settings = load()

    import asyncio  # after the settings, so that --help and a wrong flag are answered at once
    import logging
    import sys

    from convolver.server.server import Server

    async def serve() -> None:
        await Server(settings).run()

    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        asyncio.run(serve())
    except (OSError, ImportError) as error:
        sys.exit(f"convolver-server: {error}")


if __name__ == "__main__":
    main()
