"""What is sent where a server does not know a layer that a request names, whatever the client's colour."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from convolver.client._composition import Composition, HeldWeights, RequestMessage
    from convolver.core.errors import UnknownLayer

LARGEST_WHOLE = 16 << 20
"""Bytes of a request up to which it may bring its layers; to a larger one they go ahead, in pieces. A quarter of what
a server takes by default."""


class Again(NamedTuple):
    """A request to be sent again, and the layer to be put on the same server before that."""

    put: HeldWeights | None
    message: bytes


class Repeats:
    """How a request that names layers by their digests may be repeated: from its own bytes, since the caller's array
    may hold something else by now.
    """

    def __init__(self, composition: Composition, message: bytes, kind: type[RequestMessage], *, resend: bool) -> None:
        self.is_over = not (resend and composition.held)
        self._composition, self._kind, self._put = composition, kind, set[str]()
        self._message = b"" if self.is_over else message  # nobody's memory is held for nothing

    @property
    def by_digest(self) -> Again:
        """As it was."""
        return Again(None, self._message)

    def after(self, unknown: UnknownLayer) -> Again:
        """What to send after that answer: a large request as it was, behind the layer; another with all its layers, and
        a large one too where the layer has got lost. Raises `unknown` where all that was done.
        """
        if self.is_over:
            raise unknown
        held, size = self._composition.held.get(unknown.digest), len(self._message) + self._composition.held_bytes
        if held is not None and held.digest not in self._put and size > LARGEST_WHOLE:
            self._put.add(held.digest)
            return Again(held, self._message)
        self.is_over = True
        return Again(None, self._composition.whole(self._message, self._kind))
