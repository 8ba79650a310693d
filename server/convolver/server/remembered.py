"""Plans that are kept: callers send the same few headers again and again, and a plan costs more than a tiny sum."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import Generic, Protocol, TypeVar

MOST_LAYERS = 4096
"""Of all plans that are kept: a layer's plan, as an object and as a message, takes some 2 KB."""

LONGEST = 1 << 16
"""Bytes of a header that is kept. Ordinary ones have 200; with a digest a layer takes 75."""


class Weighted(Protocol):
    """What is kept."""

    @property
    def layers(self) -> int:
        """Layers that it has."""


Kept = TypeVar("Kept", bound=Weighted)


class Remembered(Generic[Kept]):
    """For any thread: the latest by their headers, of at most MOST_LAYERS layers in all; the least recently asked for
    are forgotten.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Kept] = OrderedDict()
        self._layers, self._lock = 0, Lock()

    def get(self, header: bytes) -> Kept | None:
        """What is kept of that header."""
        with self._lock:
            found = self._kept.get(header)
            if found is not None:
                self._kept.move_to_end(header)
            return found

    def put(self, header: bytes, kept: Kept) -> None:
        """Keeps it."""
        with self._lock:
            if len(header) > LONGEST or header in self._kept:
                return
            self._kept[header] = kept
            self._layers += kept.layers
            while self._layers > MOST_LAYERS:
                _, oldest = self._kept.popitem(last=False)
                self._layers -= oldest.layers
