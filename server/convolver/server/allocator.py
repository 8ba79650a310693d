"""How glibc's allocator should treat this process's large buffers."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h

KEPT_BYTES = 64 << 20
"""Buffers up to so many bytes are used again; glibc would take those of more than 32 MiB afresh from the system each
time, and have each of their pages written with zeros first.
"""

FREE_BYTES = 128 << 20
"""So many free bytes may stay at the end of the heap."""

ARENAS = 1
"""What one thread has freed is there for all: in arenas of their own each of them keeps as much."""


def keep_buffers() -> None:
    """Says so to glibc, where the user has said nothing about its allocator; elsewhere nothing happens. To be called
    before there are threads.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    told = "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", "") or any(n.startswith("MALLOC_") for n in os.environ)
    if mallopt is None or told:
        return
    for option, value in ((M_ARENA_MAX, ARENAS), (M_MMAP_THRESHOLD, KEPT_BYTES), (M_TRIM_THRESHOLD, FREE_BYTES)):
        mallopt(option, value)
