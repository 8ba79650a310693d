"""The real server, whose event loop is held up again and again once it stops: python -m tests.server.held_up_server.

The environment says for how long each time, and how long it runs freely between (HELD_UP_SECONDS, FREE_SECONDS): what
on a busy machine happens once in a thousand stops happens every few times. It is loaded before the server's settings,
which its libraries would read: no server to measure.
"""

from __future__ import annotations

import asyncio
import os
import time

from convolver.server.__main__ import main
from convolver.server.server import Server

stop = Server.stop


async def held_up_stop(self: Server) -> None:
    """Server.stop, slowly."""
    held_up, free = (float(os.environ[name]) for name in ("HELD_UP_SECONDS", "FREE_SECONDS"))

    def hold_up() -> None:
        time.sleep(held_up)
        asyncio.get_running_loop().call_later(free, hold_up)

    hold_up()
    await stop(self)


if __name__ == "__main__":
    Server.stop = held_up_stop  # type: ignore[method-assign]  # what this program is for
    main()
