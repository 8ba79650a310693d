"""Memory that a client shares with a server on its own host: sealed memfds that are lent as arrays, and lent again."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
import weakref
from collections import deque
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from convolver.core import dtypes
from convolver.core.values import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from convolver.core.tensors import Array

FIRST = 4096
"""Where tensors begin. What stands at a region's start proves whose it is, so no caller's data may ever be there."""

ALIGNMENT = 64
"""Of each tensor, in bytes: a cache line."""

SMALL = 1 << 16
"""Bytes below which an array is not worth a region."""

KEPT = 1 << 29
"""Bytes that are kept, of memory that nobody uses: it is warm, and fresh memory costs the system a fault a page."""

MOST = 128
"""Regions of one client: each takes two descriptors, of which a process has 1024 by default."""


class Memory:
    """A memfd, mapped, that nobody can make smaller or larger."""

    def __init__(self, size: int) -> None:
        self.descriptor, self.bytes = os.memfd_create("convolver", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), size
        weakref.finalize(self, os.close, self.descriptor).atexit = False
        os.ftruncate(self.descriptor, size)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._map = mmap.mmap(self.descriptor, size)
        self.address = _address(memoryview(self._map))
        self.is_spoilt = False  # where the server may write to it at any time, so that it is not lent again

    def prove(self, nonce: bytes) -> None:
        """Writes the server's challenge."""
        self._map[: len(nonce)] = nonce


class Lent:
    """What keeps memory from being lent again: every array over it refers to this, and so every view of those."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (memory.bytes - FIRST,),
            "data": (memory.address + FIRST, False),
        }


class Place:
    """Bytes of a tensor in lent memory; `offset` is from the memory's start."""

    def __init__(self, lent: Lent, offset: int, size: int) -> None:
        self.memory, self.offset, self.bytes = lent.memory, offset, size
        self.data: NDArray[np.uint8] = np.asarray(lent)[offset - FIRST :][:size]


class Pool:
    """The memory of one client, of one process. `forget` is told of what goes back to the system."""

    def __init__(self, forget: Callable[[Memory], None]) -> None:
        self._forget, self._kept, self._process = forget, KEPT, os.getpid()
        self._lent: dict[int, weakref.ref[Lent]] = {}
        self._free: list[Memory] = []  # the longest unused first
        self._returned = deque[Memory]()
        self._lock = threading.Lock()

    def empty(self, shape: int | Sequence[int], dtype: str) -> Array:
        """An array in shared memory; an ordinary one where it is small, or none is to be had. Raises InvalidConvolution
        for what is no shape or dtype.
        """
        given = (shape,) if isinstance(shape, int) else tuple(shape)
        dims, numpy = tuple(number(n, f"shape[{i}]", low=0) for i, n in enumerate(given)), dtypes.named(dtype).numpy
        size = prod(dims) * np.dtype(numpy).itemsize
        places = self.places([size]) if size >= SMALL else None
        return places[0].data.view(numpy).reshape(dims) if places else np.empty(dims, numpy)

    def places(self, sizes: Sequence[int]) -> list[Place] | None:
        """Room for tensors of these sizes, side by side; None where there is no memory."""
        offsets, end = list[int](), FIRST
        for size in sizes:
            offsets.append(end)
            end += -(-size // ALIGNMENT) * ALIGNMENT
        lent = self._lend(end)
        if lent is None:
            return None
        return [Place(lent, offset, size) for offset, size in zip(offsets, sizes, strict=True)]

    def find(self, view: memoryview) -> Place | None:
        """The place of bytes that are in lent memory already."""
        address = _address(view)
        with self._alone():
            lent = [found for reference in self._lent.values() if (found := reference())]
        for one in lent:
            offset = address - one.memory.address
            if offset >= FIRST and offset + view.nbytes <= one.memory.bytes:
                return Place(one, offset, view.nbytes)
        return None

    def trim(self) -> bool:
        """Lets go of what nobody uses; whether there was any."""
        with self._alone():
            free, self._free = self._free, []
            for memory in free:
                self._forget(memory)
        return bool(free)

    def close(self) -> None:
        """From now on nothing is kept that nobody uses."""
        self._kept = 0
        self.trim()

    def _lend(self, end: int) -> Lent | None:
        size = _rounded(end)
        if self._process != os.getpid():  # what is free here is free in the parent of a fork too
            return None
        with self._alone():
            memory = self._again(size) or self._fresh(size)
            if memory is None:
                return None
            lent = Lent(memory)
            self._lent[memory.address] = weakref.ref(lent)
            weakref.finalize(lent, self._return, memory).atexit = False
        return lent

    def _fresh(self, size: int) -> Memory | None:
        """In the place of what is free and does not fit, where there is no room beside it."""
        if self._free and len(self._lent) + len(self._free) == MOST:
            self._forget(self._free.pop(0))
        try:
            return Memory(size) if len(self._lent) + len(self._free) < MOST else None
        except (AttributeError, OSError):  # a system without memfds; no descriptors, or no memory
            return None

    def _again(self, size: int) -> Memory | None:
        """The smallest that is free and large enough, but not more than twice as large; of these the last used."""
        fitting = [memory for memory in reversed(self._free) if size <= memory.bytes <= 2 * size]
        if not fitting:
            return None
        memory = min(fitting, key=lambda one: one.bytes)
        self._free.remove(memory)
        return memory

    def _return(self, memory: Memory) -> None:
        """Called where the last array over it goes, be it in the midst of a method of this class."""
        self._returned.append(memory)
        self._settle()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """With the lock, and whatever has come back; what comes back meanwhile is taken back afterwards."""
        try:
            with self._lock:
                self._take_back()
                yield
        finally:
            self._settle()

    def _settle(self) -> None:
        """Takes back what has come, unless somebody has the lock: he does it when he lets go of it."""
        while self._returned and self._lock.acquire(blocking=False):
            try:
                self._take_back()
            finally:
                self._lock.release()

    def _take_back(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            del self._lent[memory.address]
            if memory.is_spoilt:
                self._forget(memory)
            else:
                self._free.append(memory)
        while sum(memory.bytes for memory in self._free) > self._kept:
            self._forget(self._free.pop(0))


def _rounded(size: int) -> int:
    """Up, by an eighth at most or to a MiB, so that tensors of nearly the same size use the same memory."""
    step = max(1 << 20, 1 << (size.bit_length() - 3))
    return -(-size // step) * step


def _address(view: memoryview) -> int:
    interface: dict[str, Any] = np.frombuffer(view, np.uint8).__array_interface__
    address: int = interface["data"][0]
    return address
