"""How requests run whose data comes in chunks: in which pieces, and within how many bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from convolver.core.pieces import pieces_workspace_bytes
from convolver.server.remembered import Remembered

if TYPE_CHECKING:
    from convolver.core.pieces import Piece
    from convolver.server.engine import Engine
    from convolver.server.jobs import Job

MOST_PIECES = 256
"""Of parts that are kept: what has more takes far longer than to cut it again."""


class Parts(NamedTuple):
    """The pieces of a job in their order, none where it runs as a whole, and the bytes that it holds meanwhile."""

    pieces: tuple[Piece, ...]
    held_bytes: int

    @property
    def layers(self) -> int:
        """What they count for among those that are kept."""
        return len(self.pieces) + 1


class PartsOf:
    """Parts by the headers of requests, which decide them; to work them out takes a thread and up to a millisecond."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._remembered = engine, Remembered[Parts]()

    async def __call__(self, header: bytes, job: Job) -> Parts:
        """Those of `job`, which is that header's."""
        found = self._remembered.get(header)
        if found is None:
            found = await asyncio.to_thread(self._made, job)
            if len(found.pieces) <= MOST_PIECES:
                self._remembered.put(header, found)
        return found

    def _made(self, job: Job) -> Parts:
        plan, whole = job.plan, Parts((), self._engine.most_held_bytes(job))
        if plan.input.dtype == "bool" or job.uses_regions:  # bools are checked as a whole
            return whole
        pieces = self._engine.pieces(job)
        if not pieces:
            return whole
        held_bytes = plan.input_bytes + plan.output_bytes + pieces_workspace_bytes(pieces)
        return Parts(pieces, held_bytes) if held_bytes <= self._engine.limits.max_request_bytes else whole
