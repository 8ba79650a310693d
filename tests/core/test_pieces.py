"""Convolutions in pieces: together they are the whole, each with no more of the input than it says it needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.core import oracle, resident
from tests.core.operations import BACKENDS, Array, arrays, backend, operation, requests, small_integers
from tests.core.stack_runs import Stack, convolution
from tests.core.stack_runs import plan_of as plan_of_stack

from convolver.core import pieces as module
from convolver.core.backends import Backend
from convolver.core.choose import choose
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.geometry import Geometry, spatial_axis
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution, Operation, Tensor
from convolver.core.pieces import Piece, pieces, pieces_workspace_bytes
from convolver.core.plan import Plan

each_backend = pytest.mark.parametrize("name", BACKENDS)
INTEGERS: list[DTypeName] = [row.name for row in TABLE.values() if row.exact]
MB = 1 << 20


@contextmanager
def small_pieces(size: int = 1, halos: int = 0) -> Iterator[None]:
    """Where pieces of so many bytes are worth it, and rows that read as many again so many times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", size)
        patch.setattr(module, "LEAST_WEIGHTS", 0)
        patch.setattr(module, "LEAST_HALOS", halos)
        yield


def plan_of(name: str, op: Operation, **execution: Any) -> Plan:  # noqa: ANN401 - of Execution
    how = Execution(**{"backend": name, "algorithm": "direct", **execution})
    return choose(Geometry.of(op), how, [backend(name).capability])


def cut(name: str, plan: Any) -> tuple[Piece, ...]:  # noqa: ANN401 - a Plan or a StackPlan
    return pieces(plan, partial(choose, capabilities=[backend(name).capability]))


def joined(chosen: Backend, plan: Plan, made: tuple[Piece, ...], operands: Any) -> Array:  # noqa: ANN401 - three arrays
    """What the pieces give one after the other, each before the rest of the input has come."""
    x, w, bias = operands
    prepared = chosen.prepare(plan, w, bias)
    out = np.zeros(plan.output_shape, TABLE[plan.output.dtype].numpy)
    come = np.full_like(x, np.nan if not TABLE[plan.input.dtype].exact else 1)
    for piece in made:
        n = piece.input_bytes // x.itemsize
        come.reshape(-1)[:n] = x.reshape(-1)[:n]
        chosen.run(piece.plan, prepared, come[piece.input], out[piece.output])
    return out


@st.composite
def operations(draw: st.DrawFn, dtype: DTypeName = "float32") -> Operation:
    """Up to three times as long in the first spatial dimension as those that are drawn elsewhere."""
    op = draw(requests(dtype)).operation
    shape, axis = list(op.input_shape), spatial_axis(op, 0)
    shape[axis] *= draw(st.integers(1, 3))
    return replace(op, input_shape=tuple(shape))


@each_backend
@settings(max_examples=300)
@given(op=operations(), seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1, 200, 1000]), halos=st.integers(0, 2))
def test_pieces_are_together_what_the_whole_is(name: str, op: Operation, seed: int, size: int, halos: int) -> None:
    chosen = backend(name)
    plan = plan_of(name, op)
    with small_pieces(size, halos):
        made = cut(name, plan)
    assume(made)
    operands = arrays(op, seed)
    oracle.assert_agrees(op, joined(chosen, plan, made, operands), *operands)


@each_backend
@settings(max_examples=300)
@given(op=operations(), seed=st.integers(0, 2**32 - 1))
def test_pieces_of_whole_numbers_have_the_bits_of_the_whole(name: str, op: Operation, seed: int) -> None:
    op, chosen = replace(op, activation="none"), backend(name)
    plan = plan_of(name, op)
    with small_pieces():
        made = cut(name, plan)
    assume(made)
    x, w, bias = operands = arrays(op, seed, small_integers)
    expected = chosen.run(plan, chosen.prepare(plan, w, bias), x).output
    np.testing.assert_array_equal(joined(chosen, plan, made, operands), expected)


@settings(max_examples=200)
@given(op=st.sampled_from(INTEGERS).flatmap(operations), overflow=st.sampled_from(["error", "wrap"]))
def test_so_have_integers(op: Operation, overflow: Any) -> None:  # noqa: ANN401 - an Overflow
    op, chosen = replace(op, overflow=overflow), backend("reference")
    plan = plan_of("reference", op)
    with small_pieces():
        made = cut("reference", plan)
    assume(made)
    x, w, bias = operands = arrays(op, 0)
    expected = chosen.run(plan, chosen.prepare(plan, w, bias), x).output
    np.testing.assert_array_equal(joined(chosen, plan, made, operands), expected)


@settings(max_examples=300)
@given(op=operations(), size=st.sampled_from([1, 200, 1000]))
def test_pieces_cover_the_output_once_and_in_the_order_in_which_it_travels(op: Operation, size: int) -> None:
    plan = plan_of("reference", op)
    with small_pieces(size):
        made = cut("reference", plan)
    assume(made)
    written, needed, itemsize = np.zeros(plan.output_shape, int), 0, TABLE[plan.output.dtype].itemsize
    for piece in made:
        assert written[piece.output].shape == piece.plan.output_shape
        written[piece.output] += 1
        final = piece.output_bytes // itemsize
        assert (written.reshape(-1)[:final] == 1).all()
        assert not written.reshape(-1)[final:].any()
        assert needed <= piece.input_bytes <= prod(plan.input.shape) * TABLE[plan.input.dtype].itemsize
        needed = piece.input_bytes
    assert made[-1].output_bytes == plan.output_bytes


PICTURE = operation((1, 1, 64, 64), (1, 1, 3, 3))
BATCH = operation((4, 3, 16, 16), (8, 3, 3, 3))
LAST: dict[str, Any] = {"layout": "channels_last"}


@pytest.mark.parametrize(
    ("op", "count"),
    [
        (PICTURE, 62),
        (BATCH, 4),
        (operation((2, 1, 9, 9), (1, 1, 3, 3)), 14),
        (operation((9, 9, 3), (3, 3, 3, 8), **LAST), 7),
        (operation((1, 64), (1, 1, 3)), 62),
        (operation((3, 1, 9, 9), (1, 1, 3, 3), transposed=True), 3),
        (operation((1, 1, 9, 9), (1, 1, 3, 3), padding=1, padding_mode="reflect"), 9),
        (operation((1, 1, 9, 9), (1, 1, 3, 3), padding=[(0, 0), (1, 1)], padding_mode="circular"), 7),
        (operation((4, 1, 9, 9), (2, 1, 3, 3), padding=1, padding_mode="circular"), 4),
        (operation((4, 3, 5), (2, 3, 3), "uint8", output_dtype="int32"), 4),
        (operation((4, 3, 5), (2, 3, 3), "uint8", overflow="wrap"), 4),
        (operation((4, 3, 5), (2, 3, 3), "int16", output_dtype="float32"), 4),
        (operation((4, 3, 5), (2, 3, 3), "bool"), 4),
    ],
    ids=str,
)
def test_what_can_be_cut_is_cut_into_items_or_rows(op: Operation, count: int) -> None:
    with small_pieces():
        assert len(cut("reference", plan_of("reference", op))) == count


WHOLE = {
    "an item of several channels": operation((1, 3, 16, 16), (8, 3, 3, 3)),
    "nothing": operation((0, 3, 16, 16), (8, 3, 3, 3)),
    "batch groups": operation((4, 3, 16, 16), (8, 3, 3, 3), batch_groups=2),
    "a transposed item": operation((1, 1, 9, 9), (1, 1, 3, 3), transposed=True),
    "padding from the other end": operation((1, 1, 9, 9), (1, 1, 3, 3), padding=1, padding_mode="circular"),
    "padding from other pieces": operation((1, 1, 9, 9), (1, 1, 3, 3), padding=4, padding_mode="reflect"),
    "integers that may not fit": operation((4, 3, 5), (2, 3, 3), "uint8"),
    "integers whose sums may not fit": operation((4, 3, 5), (2, 3, 3), "int32", overflow="saturate"),
    "integers that may not have a float": operation(
        (4, 3, 5), (2, 3, 3), "int32", output_dtype="float64", overflow="wrap"
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_cannot_be_cut_runs_whole(name: str) -> None:
    with small_pieces():
        assert cut("reference", plan_of("reference", WHOLE[name])) == ()


def test_neither_is_cut_what_is_no_plain_convolution() -> None:
    stack = Stack(Tensor("float32", (4, 2, 8, 8)), (convolution((4, 2, 3, 3)), convolution((3, 4, 1, 1))))
    capability = backend("reference").capability
    with small_pieces():
        assert cut("reference", plan_of_stack("reference", stack)) == ()
        assert cut("reference", plan_of("reference", BATCH, deterministic=True)) == ()
        assert cut("reference", plan_of("reference", BATCH, algorithm="fft")) == ()
        wanted = Wanted(input=True, weight=False, bias=False)
        assert cut("reference", choose(Geometry.of(BATCH), Execution(), [capability], None, wanted)) == ()


def test_weights_that_are_packed_for_one_shape_are_for_the_whole() -> None:
    pytest.importorskip("torch")
    op = operation((4, 64, 7, 7), (512, 64, 3, 3))
    with small_pieces():
        assert cut("torch:cpu", plan_of("torch:cpu", op)) == ()


def test_a_part_that_another_back_end_would_run_is_a_reason_to_run_whole() -> None:
    plan = plan_of("reference", BATCH)
    with small_pieces():
        assert pieces(plan, lambda geometry, _: replace(plan, geometry=geometry, backend="torch:cpu")) == ()
        assert pieces(plan, lambda geometry, _: replace(plan, geometry=geometry, algorithm="fft")) == ()


def test_parts_are_asked_for_on_the_back_end_of_the_whole_by_direct_sums() -> None:
    plan = plan_of("reference", BATCH, backend="auto", algorithm="auto", precision="medium")
    asked: list[Execution] = []

    def planned(geometry: Geometry, execution: Execution) -> Plan:
        asked.append(execution)
        return replace(plan, geometry=geometry)

    with small_pieces():
        assert len(pieces(plan, planned)) == 4
    assert asked == [Execution(backend="reference", algorithm="direct", precision="medium")]


@each_backend
def test_an_input_without_rows_is_cut_like_any_other(name: str) -> None:
    """Its output is padding alone, whose gaps nothing dilates."""
    op = operation((1, 0, 4, 2), (3, 3, 2, 3), padding=[(5, 4), (1, 1)], input_dilation=2, padding_value=2.5,
                   padding_mode="constant", **LAST)  # fmt: skip
    plan, chosen = plan_of(name, op), backend(name)
    with small_pieces():
        made = cut(name, plan)
    assert len(made) == 7
    x, w, bias = operands = arrays(op, 0, small_integers)
    expected = chosen.run(plan, chosen.prepare(plan, w, bias), x).output
    np.testing.assert_array_equal(joined(chosen, plan, made, operands), expected)


def test_pieces_are_some_mebibytes() -> None:
    op = operation((1, 1, 4096, 4096), (1, 1, 3, 3), padding="same")
    made = cut("reference", plan_of("reference", op))
    assert 16 <= len(made) <= 64
    assert pieces_workspace_bytes(made) <= 16 * MB
    assert cut("reference", plan_of("reference", operation((1, 1, 512, 512), (1, 1, 3, 3)))) == ()


def test_many_items_of_few_bytes_are_taken_together_and_read_large_weights_a_few_times() -> None:
    op = operation((4096, 256, 4), (256, 256, 4), padding="same")
    assert len(cut("reference", plan_of("reference", op))) <= 16


def in_pieces(name: str, plan: Plan) -> None:
    """Runs them, into an output whose pages all come to be."""
    made, chosen = cut(name, plan), backend(name)
    x, out = np.full(plan.input.shape, 1, np.float32), np.zeros(plan.output_shape, np.float32)
    prepared = chosen.prepare(plan, np.ones(plan.operation.weight_shape, np.float32), None)
    for piece in made:
        chosen.run(piece.plan, prepared, x[piece.input], out[piece.output])


@pytest.mark.skipif(sys.platform != "linux", reason="measured through Linux's /proc")
@each_backend
def test_pieces_take_the_memory_of_the_largest(name: str) -> None:
    plan = plan_of(name, operation((1, 1, 4096, 4096), (1, 1, 3, 3), padding="same"))
    planned = plan.input_bytes + plan.output_bytes + pieces_workspace_bytes(cut(name, plan))
    assert planned < plan.peak_bytes - 32 * MB
    meter = resident.Meter()
    try:
        meter.growth(in_pieces, name, plan)  # libraries' own buffers come once and stay
        assert meter.growth(in_pieces, name, plan) <= planned + 32 * MB
    finally:
        meter.close()
