"""The bytes of tensors in chunks: cut where they go, and put together where they come."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from convolver.core.tensors import Array

CHUNK = 1 << 20
"""Bytes of data of one message (docs/decisions/0012-when-chunks.md)."""


def chunks(views: Iterable[memoryview], size: int = CHUNK) -> Iterator[list[memoryview]]:
    """The bytes of the views, in their order, as parts of them that are `size` bytes together; the last may be less."""
    parts, room = list[memoryview](), size
    for view in views:
        start = 0
        while start < view.nbytes:
            parts.append(view[start : start + room])
            start += parts[-1].nbytes
            room -= parts[-1].nbytes
            if not room:
                yield parts
                parts, room = [], size
    if parts:
        yield parts


class Filling:
    """Memory that is written to as bytes come, one buffer after the other: C-contiguous arrays of any dtype.

    Attributes:
        bytes: of all of it.
        come: how many are there.
    """

    def __init__(self, buffers: Iterable[Array]) -> None:
        self._unfilled = deque(buffer.reshape(-1).view(np.uint8) for buffer in buffers if buffer.nbytes)
        self.bytes, self.come = sum(buffer.nbytes for buffer in self._unfilled), 0

    def take(self, data: memoryview) -> None:
        """The next bytes. Raises ValueError for more than there is room for, and takes none of them."""
        new, come = np.frombuffer(data, np.uint8), self.come + data.nbytes
        if come > self.bytes:
            raise ValueError(f"it has {come - self.bytes} bytes or more beyond its tensors")
        self.come = come
        while new.size:
            target = self._unfilled.popleft()
            size = min(new.size, target.size)
            np.copyto(target[:size], new[:size])  # without Python's lock, which whoever computes or sends may have
            if size < target.size:
                self._unfilled.appendleft(target[size:])
            new = new[size:]
