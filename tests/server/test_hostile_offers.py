"""What callers may name instead of memory of theirs, and that it is refused without being touched."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.server.hold_calls import (
    PAGE,
    SEALS,
    Memfd,
    OpenHold,
    why,
)

from convolver.core.errors import InvalidConvolution

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

NO_MEMFD = "no memfd that this server may open"


def fifo() -> int:
    with tempfile.TemporaryDirectory() as folder:
        os.mkfifo(f"{folder}/fifo")
        return os.open(f"{folder}/fifo", os.O_RDWR)


def file_on_disk() -> int:
    descriptor, path = tempfile.mkstemp()
    os.ftruncate(descriptor, PAGE)
    Path(path).unlink()
    return descriptor


def file_that_looks_like_a_memfd() -> int:
    descriptor, path = tempfile.mkstemp(dir="/dev/shm", prefix="memfd:")
    os.ftruncate(descriptor, PAGE)
    Path(path).unlink()
    return descriptor


def huge_pages() -> int:
    """Their faults end in SIGBUS where the pool is empty, as it is unless somebody filled it."""
    descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    os.ftruncate(descriptor, 2**21)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    return descriptor


HOSTILE: dict[str, Callable[[], int]] = {
    "a FIFO": fifo,
    "a pipe": lambda: os.pipe()[0],
    "a socket": lambda: socket.socket(socket.AF_UNIX).detach(),
    "a device": lambda: os.open("/dev/zero", os.O_RDWR),
    "a terminal": lambda: os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY),
    "a folder": lambda: os.open("/", os.O_RDONLY),
    "a file": file_on_disk,
    "a file in memory": file_that_looks_like_a_memfd,
    "huge pages": huge_pages,
    "an eventfd": lambda: os.eventfd(0),
}


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_memfd_is_refused(hold: OpenHold, sharing_server: RunningServer, make: Callable[[], int]) -> None:
    descriptor = make()
    try:
        error = why(hold.offer(1, descriptor))
    finally:
        os.close(descriptor)
    assert isinstance(error, InvalidConvolution)
    assert NO_MEMFD in error.message
    assert sharing_server.process.poll() is None


@pytest.mark.parametrize("process", [0, -1, -(2**63), 1, 2**31, 2**63 - 1])
def test_processes_that_are_none_or_out_of_reach_are_refused(hold: OpenHold, process: int) -> None:
    assert NO_MEMFD in why(hold.offer(1, 0, process=process)).message


@pytest.mark.parametrize("descriptor", [-1, -(2**31), 2**31 - 1, 999])
def test_descriptors_that_are_none_are_refused(hold: OpenHold, descriptor: int) -> None:
    assert NO_MEMFD in why(hold.offer(1, descriptor)).message


def test_the_servers_own_descriptors_are_refused(hold: OpenHold, sharing_server: RunningServer) -> None:
    with Memfd() as memory:
        hold.hold(1, memory)
        process = sharing_server.process.pid
        for thread in (Path("/proc") / str(process) / "task").iterdir():  # the process's own number among them
            for descriptor in range(64):
                assert NO_MEMFD in why(hold.offer(2, descriptor, process=int(thread.name))).message


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_memory_whose_size_may_change_is_refused(hold: OpenHold, seals: int) -> None:
    with Memfd(seals=seals) as memory:
        assert "not sealed" in why(hold.offer(1, memory.descriptor)).message


@pytest.mark.parametrize("seal", [fcntl.F_SEAL_WRITE, 0x10], ids=["write", "future write"])
def test_memory_that_cannot_be_written_is_refused(hold: OpenHold, seal: int) -> None:
    with Memfd(seals=SEALS | seal) as memory:
        assert "sealed against writing" in why(hold.offer(1, memory.descriptor)).message


def test_a_seal_against_writing_that_comes_after_the_offer_is_refused(hold: OpenHold) -> None:
    with Memfd() as memory:
        memory.write(hold.offer(1, memory.descriptor).challenge.nonce)
        fcntl.fcntl(memory.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert "cannot be mapped" in why(hold.prove(1)).message
