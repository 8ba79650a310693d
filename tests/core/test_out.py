"""Outputs that are written where the caller says: they are those of a run without that, to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.operations import BACKENDS, Array, Request, arrays, backend, operation, requests
from tests.core.stack_runs import Stack, convolution, layer_weights, operands, plan_of, pooling

from convolver.core.choose import choose
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Operation, Tensor
from convolver.core.parameters import Algorithm

each_backend = pytest.mark.parametrize("name", BACKENDS)
FLOATS: list[DTypeName] = [row.name for row in TABLE.values() if not row.exact]
INTEGERS: list[DTypeName] = [row.name for row in TABLE.values() if row.exact]


def any_of(names: list[DTypeName]) -> st.SearchStrategy[Request]:
    return st.sampled_from(names).flatmap(requests)


def both(name: str, op: Operation, out: Array, algorithm: Algorithm = "direct") -> tuple[Array, Array]:
    """What a run gives, and what one gives that was told to write into `out`."""
    chosen = backend(name)
    plan = choose(Geometry.of(op), Execution(backend=name, algorithm=algorithm), [chosen.capability])
    x, w, bias = arrays(op, 0)
    prepared = chosen.prepare(plan, w, bias)
    expected = chosen.run(plan, prepared, x).output
    outcome = chosen.run(plan, prepared, x, out)
    assert outcome.output is out
    return expected, outcome.output


def room(op: Operation, *, slab: bool = False) -> Array:
    """An array for the output, full of ones; a part of a larger one where `slab`."""
    shape = Geometry.of(op).output_shape
    larger = np.ones((*shape[:-1], shape[-1] + 3) if slab else shape, TABLE[op.output_dtype].numpy)
    return larger[..., 1 : shape[-1] + 1] if slab else larger


@each_backend
@pytest.mark.parametrize("slab", [False, True], ids=["contiguous", "a slab"])
@settings(max_examples=100)
@given(drawn=any_of(FLOATS))
def test_an_output_is_written_where_it_was_asked_for(name: str, slab: bool, drawn: Request) -> None:  # noqa: FBT001 - of the table
    op = drawn.operation
    out = room(op, slab=slab)
    expected, written = both(name, op, out)
    assert written.tobytes() == expected.tobytes()
    if slab and out.base is not None and out.size:
        np.testing.assert_array_equal(out.base[..., [0, -2, -1]].astype(complex), 1)


@settings(max_examples=60)
@given(drawn=any_of(INTEGERS))
def test_so_are_integers(drawn: Request) -> None:
    op = drawn.operation
    expected, written = both("reference", op, room(op))
    np.testing.assert_array_equal(written, expected)


@each_backend
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_so_is_what_came_by_an_fft(name: str, layout: Any) -> None:  # noqa: ANN401 - a Layout
    shapes = ((2, 3, 40, 40), (4, 3, 9, 9)) if layout == "channels_first" else ((2, 40, 40, 3), (9, 9, 3, 4))
    op = operation(*shapes, layout=layout)
    expected, written = both(name, op, room(op), "fft")
    np.testing.assert_array_equal(written, expected)


@each_backend
def test_memory_that_is_not_aligned_is_written_to_as_well(name: str) -> None:
    op = operation((1, 2, 5, 5), (3, 2, 3, 3), "complex128")
    shape = Geometry.of(op).output_shape
    out = np.zeros(np.prod(shape) * 16 + 4, np.uint8)[4:].view(np.complex128).reshape(shape)
    expected, written = both(name, op, out)
    np.testing.assert_array_equal(written, expected)


@each_backend
def test_out_of_another_shape_or_type_is_refused(name: str) -> None:
    op = operation((2, 1, 5), (1, 1, 3))
    for wrong in (np.empty((1, 1, 3), np.float32), np.empty((2, 1, 3)), np.empty((2, 1, 4), np.float32)):
        with pytest.raises(ValueError, match=r"out is .* the output \(2, 1, 3\) of float32"):
            both(name, op, wrong)


@each_backend
@pytest.mark.parametrize("items", [0, 2])
def test_a_stacks_output_is_written_there_too(name: str, items: int) -> None:
    layers = (convolution((4, 2, 3, 3)), pooling("max", kernel=2), convolution((3, 4, 1, 1), activation="relu"))
    stack = Stack(Tensor("float32", (items, 2, 8, 8)), layers)
    given, plan = operands(stack, 0), plan_of(name, stack)
    weights = [layer_weights(name, each) for each in given.weights]
    out = np.ones(plan.outputs["output"].shape, np.float32)
    expected = backend(name).run_stack(plan, weights, given.x).output
    assert backend(name).run_stack(plan, weights, given.x, out).output is out
    np.testing.assert_array_equal(out, expected)
    with pytest.raises(ValueError, match="out is"):
        backend(name).run_stack(plan, weights, given.x, np.ones(3, np.float32))
