"""How a request in chunks runs: its pieces, its bytes, and that both are worked out once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tests.contract import convolution

from convolver.core.pieces import pieces_workspace_bytes
from convolver.server import parts as server_parts
from convolver.server.engine import Engine
from convolver.server.layers import LayerStore
from convolver.server.parts import PartsOf
from convolver.server.settings import Settings
from convolver.v1 import tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.core.pieces import Piece
    from convolver.server.jobs import Job
    from convolver.v1.convolution_pb2 import Convolution

ITEM = (1024, 512)
"""Of float32, with an output of that size: a piece."""

KERNEL = (1, 1, 1, 1)


class Counting(Engine):
    """Knows what was cut."""

    cut: Sequence[Job] = ()

    def pieces(self, job: Job) -> tuple[Piece, ...]:
        self.cut = [*self.cut, job]
        return super().pieces(job)


@pytest.fixture
def engine() -> Counting:
    """Of the reference alone."""
    engine = Counting.of(Settings(backend="reference", threads=1), LayerStore(0))
    assert isinstance(engine, Counting)
    return engine


def items(count: int, dtype: str = "FLOAT32") -> Convolution:
    message = convolution((count, 1, *ITEM), KERNEL)
    for tensor in (message.input, message.layers[0].definition.weight):
        tensor.dtype = tensor_pb2.DataType.Value(f"DATA_TYPE_{dtype}")
    return message


def parts_of(engine: Engine, message: Convolution) -> server_parts.Parts:
    header = message.SerializeToString()
    return asyncio.run(engine.parts(header, engine.accept(header)))


def test_pieces_take_the_tensors_and_what_the_largest_piece_takes(engine: Counting) -> None:
    found, plan = parts_of(engine, items(4)), engine.plan(items(4).SerializeToString())
    assert len(found.pieces) == 4
    assert found.held_bytes == plan.input_bytes + plan.output_bytes + pieces_workspace_bytes(found.pieces)


def in_a_region() -> Convolution:
    message = items(4)
    message.input_source.region.id = "here"
    return message


@pytest.mark.parametrize("message", [items(1), items(4, "BOOL"), in_a_region()], ids=["small", "bools", "a region"])
def test_what_runs_as_a_whole_takes_what_its_plan_says(engine: Counting, message: Convolution) -> None:
    assert parts_of(engine, message) == ((), engine.plan(message.SerializeToString()).peak_bytes)


def test_pieces_that_would_take_more_than_one_request_may_are_not_cut(engine: Counting) -> None:
    most = parts_of(engine, items(4)).held_bytes
    for limit, count in ((most, 4), (most - 1, 0)):
        engine.limits = replace(engine.limits, max_request_bytes=limit)
        header = items(4).SerializeToString()
        assert len(asyncio.run(PartsOf(engine)(header, engine.accept(header))).pieces) == count


def test_each_header_is_cut_once(engine: Counting) -> None:
    first = parts_of(engine, items(3))
    assert parts_of(engine, items(4)) != first
    assert parts_of(engine, items(3)) is first
    assert [job.plan.input.shape[0] for job in engine.cut] == [3, 4]


def test_what_has_many_pieces_is_not_kept(engine: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_parts, "MOST_PIECES", 3)
    for count in (3, 3, 4, 4):
        parts_of(engine, items(count))
    assert [job.plan.input.shape[0] for job in engine.cut] == [3, 4, 4]
