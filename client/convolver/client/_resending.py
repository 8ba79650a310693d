"""What is sent where a server does not know a layer that a request names, whatever the client's colour."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from convolver.client._requests import Request

if TYPE_CHECKING:
    from convolver.client._composition import Composition, HeldWeights
    from convolver.core.errors import UnknownLayer

LARGEST_WHOLE = 16 << 20
"""Bytes of a request up to which it may bring its layers; to a larger one they go ahead, in pieces. A quarter of what
a server takes by default."""

Sent = TypeVar("Sent", bytes, Request)
"""A request of a stream as it was sent, whose frame may hold something else by now; or one that its caller waits
for."""


class Again(NamedTuple, Generic[Sent]):
    """A request to be sent again, and the layer to be put on the same server before that."""

    put: HeldWeights | None
    request: Sent


class Repeats(Generic[Sent]):
    """How a request that names layers by their digests may be repeated; `whole` makes that which brings them."""

    def __init__(self, composition: Composition, sent: Sent, whole: Callable[[Sent], Sent], *, resend: bool) -> None:
        self.is_over = not (resend and composition.held)
        self._composition, self._put = composition, set[str]()
        self._whole: Callable[[Sent], Sent] = whole
        self._sent: Sent | None = None if self.is_over else sent  # nobody's memory is held for nothing

    @property
    def by_digest(self) -> Again[Sent]:
        """As it was."""
        assert self._sent is not None, "it may be repeated"  # noqa: S101
        return Again(None, self._sent)

    def after(self, unknown: UnknownLayer) -> Again[Sent]:
        """What to send after that answer: a large request as it was, behind the layer; another with all its layers, and
        a large one too where the layer has got lost. Raises `unknown` where all that was done.
        """
        if self.is_over or self._sent is None:
            raise unknown
        held, size = self._composition.held.get(unknown.digest), _size(self._sent) + self._composition.held_bytes
        if held is not None and held.digest not in self._put and size > LARGEST_WHOLE:
            self._put.add(held.digest)
            return Again(held, self._sent)
        self.is_over = True
        return Again(None, self._whole(self._sent))


def _size(sent: bytes | Request) -> int:
    return len(sent) if isinstance(sent, bytes) else sent.data_bytes
