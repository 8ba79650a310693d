"""The client of those who give none: one for the process, made when it is first needed."""

from __future__ import annotations

import atexit
import threading

from convolver.client import Client

_LOCK = threading.Lock()
_CLIENTS: list[Client] = []
"""The one of this process, once there is one."""


def default_client() -> Client:
    """The client of this process: CONVOLVER_ADDRESS as it is now, or an embedded server; closed at exit."""
    with _LOCK:
        if not _CLIENTS:
            _CLIENTS.append(Client())
            atexit.register(_CLIENTS[0].close)
        return _CLIENTS[0]
