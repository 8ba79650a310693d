"""Who calls, as every call says it: the server shares itself out fairly between callers."""

from __future__ import annotations

import os
import secrets

KEY = "convolver-client"

Metadata = tuple[tuple[str, str], ...]


def metadata() -> Metadata:
    """What every call of this process sends along: an id of its own, made once and again after a fork."""
    return _METADATA


def _renew() -> None:
    global _METADATA  # noqa: PLW0603 - one for the process, as the id is
    _METADATA = ((KEY, secrets.token_hex(8)),)


_METADATA: Metadata = ()
_renew()

os.register_at_fork(after_in_child=_renew)
