"""The server's process keeps large buffers, and says nothing to an allocator that its user has spoken to."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc's allocator")

IS_MAPPED = """
import ctypes
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def is_mapped(megabytes):  # whether malloc takes it from the system: bit 1 of the size, which stands before the block
    return bool(ctypes.c_size_t.from_address(libc.malloc(ctypes.c_size_t(megabytes << 20)) - 8).value & 2)
"""
KEPT = "from convolver.server.allocator import keep_buffers\nkeep_buffers()\n"
STARTED = """
import sys
from convolver.server import server
from convolver.server.__main__ import main

class Server:
    busy = False

    def __init__(self, settings):
        print(is_mapped(48))

    async def run(self, *_):
        pass

server.Server = Server
sys.argv = ["convolver-server"]
main()
"""


def printed(script: str, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", IS_MAPPED + script]
    run = subprocess.run(command, env={**environment, **variables}, check=True, capture_output=True, text=True)
    return run.stdout.strip()


def test_buffers_up_to_64_mib_are_kept() -> None:
    assert printed(KEPT + "print(is_mapped(63), is_mapped(65))") == "False True"


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_MMAP_THRESHOLD_", "1048576"), ("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")],
)
def test_what_the_user_told_the_allocator_holds(name: str, value: str) -> None:
    assert printed(KEPT + "print(is_mapped(48))", **{name: value}) == "True"


def test_other_tunables_do_not_count() -> None:
    assert printed(KEPT + "print(is_mapped(48))", GLIBC_TUNABLES="glibc.pthread.rseq=1") == "False"


def test_a_server_keeps_buffers() -> None:
    assert printed(STARTED) == "False"
