"""`convolver-server`, also `python -m convolver.server`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Serve until SIGTERM or SIGINT; exit code 0, 1 where it cannot listen or something is not installed, 2 for wrong
    settings, 128 and the signal's number when a second signal ended it at once.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # nothing has been accepted yet
    try:
        from convolver.server import logs
        from convolver.server.settings import load

        settings = load()
        if settings.workers > 1:
            from convolver.server.supervisor import serve
        else:
            from convolver.server.process import serve
    except ImportError as error:
        sys.exit(f"convolver-server: {error}; pip install 'convolver[server]'")

    logs.set_up(settings.log_level)
    try:
        serve(settings)
    except (OSError, ImportError) as error:
        sys.exit(f"convolver-server: {error}")


if __name__ == "__main__":
    main()
