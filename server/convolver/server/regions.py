"""Memory that callers share with the server: sealed memfds of theirs, mapped once it is proven that they are theirs.

What a caller names may be anything of any process, so it is opened in steps that have no effect on it: its name first,
then as a mere place (O_PATH), and as a file only when that place is on the file system of memfds.
docs/shared-memory.md has what this guards against.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
from functools import cache
from hmac import compare_digest
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakSet

from convolver.core.errors import InvalidConvolution, LimitExceeded, Overloaded, shown
from convolver.server import metrics

if TYPE_CHECKING:
    from collections.abc import Iterable

    from convolver.v1 import tensor_pb2

NONCE_BYTES = 16

MOST_REGIONS = 256
"""Of all callers: each takes a descriptor, of which a process has 1024 by default."""

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
_WRITE_SEALS = fcntl.F_SEAL_WRITE | 0x10  # F_SEAL_FUTURE_WRITE, which the module lacks
_BUDGET = "--shared-memory-budget"


class Identity(NamedTuple):
    """Of a file, whatever its descriptors."""

    device: int
    inode: int


class Candidate:
    """A memfd whose possession is yet to be proven, by writing `nonce` at its start; `close` ends it."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self.bytes = descriptor, size
        self.nonce = secrets.token_bytes(NONCE_BYTES)
        self.identity = _identity(descriptor)

    @property
    def is_proven(self) -> bool:
        """Whether the nonce stands there now."""
        return compare_digest(os.pread(self.descriptor, NONCE_BYTES, 0), self.nonce)

    def mapped(self) -> mmap.mmap:
        """Its memory, for as long as somebody uses it. Raises InvalidConvolution where the system does not map it."""
        try:
            return mmap.mmap(self.descriptor, self.bytes)
        except (OSError, ValueError) as error:
            raise InvalidConvolution(f"the region of {self.bytes} bytes cannot be mapped: {error}", "bytes") from None

    def close(self) -> None:
        """Lets go of the descriptor."""
        os.close(self.descriptor)


class Region(NamedTuple):
    """A region that a caller holds."""

    id: str
    identity: Identity
    memory: mmap.mmap


class Registry:
    """The regions of all callers, within a budget of bytes, by ids that nobody can guess.

    Regions are held, viewed and released by one thread; any may `unmap` them.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: dict[str, Region] = {}
        self._identities: set[Identity] = set()
        self._count = self._bytes = 0
        self._used: WeakSet[mmap.mmap] = WeakSet()
        self._lock = Lock()

    def open(self, process: int, descriptor: int, size: int) -> Candidate:
        """The memfd that a process has under this descriptor, counted until `forget`.

        Raises:
            InvalidConvolution: it is none, it is not sealed, or it has fewer than `size` bytes.
            LimitExceeded: it could never fit the budget.
            Overloaded: it does not fit now.
        """
        self._check_room(size)
        candidate = Candidate(_opened(process, descriptor), size)
        try:
            _check_memfd(candidate.descriptor, size)
        except BaseException:
            candidate.close()
            raise
        self._add(1, size)
        return candidate

    def hold(self, candidate: Candidate) -> Region:
        """The candidate as a region. Raises InvalidConvolution where possession is not proven, or the memory is shared
        under another id: who holds that has written what stands at its start.
        """
        if not candidate.is_proven:
            raise InvalidConvolution("the challenge's bytes do not stand at the region's start")
        if candidate.identity in self._identities:
            raise InvalidConvolution("the region is shared already", "descriptor")
        region = Region(secrets.token_hex(16), candidate.identity, candidate.mapped())
        self._held[region.id] = region
        self._identities.add(region.identity)
        return region

    def release(self, region: Region) -> None:
        """Lets go of a region, which is to be unmapped then."""
        del self._held[region.id]
        self._identities.remove(region.identity)
        self.forget(len(region.memory))

    def unmap(self, regions: Iterable[Region]) -> None:
        """Gives back the memory of regions that were released. Requests in flight keep what they use until they are
        done, and till then it takes room.
        """
        for region in regions:
            try:
                region.memory.close()
            except BufferError:
                with self._lock:
                    self._used.add(region.memory)

    def forget(self, size: int) -> None:
        """Counts a region of this size no longer."""
        self._add(-1, -size)

    def view(self, region: tensor_pb2.SharedRegion, size: int, field: str) -> memoryview:
        """The bytes of a tensor of this size, for as long as the view lives; the caller may write to them meanwhile.
        Raises InvalidConvolution, naming `field`.
        """
        held = self._held.get(region.id)
        if held is None:
            raise InvalidConvolution(f"{field}: no region has the id {shown(region.id)}", f"{field}.id")
        if region.length != size:
            text = f"{field} has {region.length} bytes of a region, but the tensor has {size}"
            raise InvalidConvolution(text, f"{field}.length")
        end, most = region.offset + size, len(held.memory)
        if end > most:
            text = f"{field} ends at byte {end} (offset {region.offset}), but the region has {most} bytes"
            raise InvalidConvolution(text, f"{field}.offset")
        return memoryview(held.memory)[region.offset : end]

    def _check_room(self, size: int) -> None:
        if size < NONCE_BYTES:
            raise InvalidConvolution(f"a region has at least {NONCE_BYTES} bytes, this one {size}", "bytes")
        if size > self._budget:
            text = f"the region has {size} bytes, more than the {self._budget} of all regions ({_BUDGET})"
            raise LimitExceeded(text, "bytes of shared memory", self._budget, size, _BUDGET)
        with self._lock:
            used = [len(memory) for memory in self._used]
        taken = self._bytes + sum(used)
        if taken + size > self._budget:
            text = f"a region of {size} bytes does not fit beside {taken} of others in {self._budget} ({_BUDGET})"
            raise Overloaded(text)
        if self._count + len(used) >= MOST_REGIONS:
            raise Overloaded(f"there are {MOST_REGIONS} regions, the most that may be shared")

    def _add(self, count: int, size: int) -> None:
        self._count += count
        self._bytes += size
        metrics.SHARED_REGIONS.set(self._count)
        metrics.SHARED_REGION_BYTES.set(self._bytes)


def _opened(process: int, descriptor: int) -> int:
    """A descriptor of ours for a memfd of another process. Raises InvalidConvolution in the same words whatever forbids
    it: callers have no business to know what other processes have open.
    """
    refusal = InvalidConvolution(
        f"descriptor {descriptor} of process {process} is no memfd that this server may open", "descriptor"
    )
    is_own = Path(f"/proc/self/task/{process}").exists()  # each thread's number leads to the process's descriptors
    if process <= 0 or descriptor < 0 or is_own:
        raise refusal
    path = Path(f"/proc/{process}/fd/{descriptor}")
    try:
        if not str(path.readlink()).startswith("/memfd:"):  # most else is sorted out before it is touched at all
            raise refusal
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if os.fstat(place).st_dev != _device_of_memfds():  # the name may lie, and huge pages end in SIGBUS
                raise refusal
            return os.open(f"/proc/self/fd/{place}", os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.close(place)
    except OSError:
        raise refusal from None


def _check_memfd(descriptor: int, size: int) -> None:
    """Raises InvalidConvolution unless it has at least `size` bytes and always will."""
    seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    if seals & _SEALS != _SEALS:
        text = "the region is not sealed with F_SEAL_SHRINK and F_SEAL_GROW: it could be cut short while it is used"
        raise InvalidConvolution(text, "descriptor")
    if seals & _WRITE_SEALS:
        raise InvalidConvolution("the region is sealed against writing, and answers are written there", "descriptor")
    own = os.fstat(descriptor).st_size
    if own < size:
        raise InvalidConvolution(f"the region is said to have {size} bytes, but the memfd has {own}", "bytes")


@cache
def _device_of_memfds() -> int:
    """The file system on which the kernel keeps memfds, which nobody mounts; those of huge pages are on another."""
    descriptor = os.memfd_create("convolver")
    try:
        return _identity(descriptor).device
    finally:
        os.close(descriptor)


def _identity(descriptor: int) -> Identity:
    status = os.fstat(descriptor)
    return Identity(status.st_dev, status.st_ino)
