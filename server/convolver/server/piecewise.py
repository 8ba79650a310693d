"""A convolution that runs in pieces while its input comes and its output goes."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from convolver.core.dtypes import TABLE
from convolver.server.chunks import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.core.backends import Array, Prepared
    from convolver.core.pieces import Piece
    from convolver.server.engine import Engine, Held
    from convolver.server.incoming import IncomingTensors
    from convolver.server.jobs import Job
    from convolver.server.scheduler import Lease


class Piecewise:
    """Each piece runs once its part of the input has come, and then its part of the output is final.

    Attributes:
        data: the tensors as they come.
        come: how many bytes of them.
        out: the output.
        made: how many bytes of it are final.
        seconds: by phase.
    """

    def __init__(self, engine: Engine, job: Job, held: Held, data: IncomingTensors) -> None:
        self._engine, self._job, self._held = engine, job, held
        self.data, self.come, self.made = data, Progress(), Progress()
        dtype, shape = job.plan.outputs["output"]
        self.out: Array = np.empty(shape, TABLE[dtype].numpy)
        self.seconds = defaultdict[str, float](float)

    async def run(self, pieces: Sequence[Piece], lease: Lease, seconds: float) -> None:
        """All of them, in their order, in so many seconds by estimate. Raises IntegerOverflow."""
        input, share = self.data.array("input"), seconds / len(pieces)
        before = self.data.bytes - input.nbytes  # it comes last
        await self.come.reach(before)
        prepared = await lease.run(self._prepared, 0.0)
        for piece in pieces:
            await self.come.reach(before + piece.input_bytes)
            lease.extend(share)
            phases = await lease.run(partial(self._engine.run_piece, piece, prepared, input, self.out), share)
            for phase, spent in phases.items():
                self.seconds[phase] += spent
            self.made.advance(piece.output_bytes)

    def _prepared(self) -> Prepared:
        arrays = {name: self.data.array(name) for name in self.data.names if name != "input"}
        return self._engine.prepared(self._job, self._held, arrays)
