"""What gradients are and cost, from integers; and what is refused."""

from __future__ import annotations

import sys
import tracemalloc
from importlib.util import find_spec
from itertools import product
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.gradient_runs import EVERYTHING, differentiable, gradients
from tests.core.operations import Array, operation
from tests.core.resident import Meter

from convolver.core.dtypes import TABLE
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.gradients import (
    Wanted,
    check,
    macs,
    outputs,
    torch_workspace_bytes,
    workspace_bytes,
)
from convolver.core.operation import Operation, Tensor

MB = 1 << 20
INPUT, WEIGHT, BIAS = (Wanted(*(each == i for each in range(3))) for i in range(3))


def test_at_least_one_must_be_wanted() -> None:
    with pytest.raises(InvalidConvolution, match="none of input, weight and bias") as caught:
        Wanted(input=False, weight=False, bias=False)
    assert caught.value.field == "gradients"


def test_the_headers_are_those_of_the_operands_in_the_order_of_an_answer() -> None:
    geometry = Geometry.of(
        operation((2, 9, 4), (3, 2, 6), "float16", layout="channels_last", groups=2, output_dtype="float64")
    )
    input, weight, bias = (Tensor("float16", shape) for shape in ((2, 9, 4), (3, 2, 6), (6,)))
    named = (("grad_input", input), ("grad_weight", weight), ("grad_bias", bias))
    for asked in product((True, False), repeat=3):
        if any(asked):
            assert outputs(geometry, Wanted(*asked)) == tuple(n for n, a in zip(named, asked, strict=True) if a)


def test_input_and_weight_cost_as_much_as_the_output_each() -> None:
    geometry = Geometry.of(operation((2, 3, 9), (4, 3, 3), padding=1))
    assert [macs(geometry, each) for each in (INPUT, WEIGHT, BIAS, EVERYTHING)] == [648, 648, 0, 1296]


WRONG = [
    ("float32", "float64", (1, 4, 6, 6), "dtype", ("float64", "float32")),
    ("float32", "float32", (1, 4, 6, 5), "shape", ("(1, 4, 6, 5)", "(1, 4, 6, 6)")),
    ("float32", "float32", (4, 6, 6), "shape", ("(4, 6, 6)", "(1, 4, 6, 6)")),
]


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_a_wrong_grad_output_is_refused_with_what_it_should_be(case: Any) -> None:  # noqa: ANN401 - a row of the table
    dtype, given_dtype, shape, field, says = case
    geometry = Geometry.of(operation((1, 3, 8, 8), (4, 3, 3, 3), dtype))
    with pytest.raises(InvalidConvolution) as caught:
        check(geometry, Tensor(given_dtype, shape))
    assert caught.value.field == f"gradients.grad_output.{field}"
    assert all(text in caught.value.message for text in says)


@pytest.mark.parametrize("dtype", [name for name, row in TABLE.items() if row.exact])
def test_integers_have_none(dtype: Any) -> None:  # noqa: ANN401 - a DTypeName
    geometry = Geometry.of(operation((1, 3, 8), (4, 3, 3), dtype))
    with pytest.raises(InvalidConvolution, match=f"{dtype}, and integers have no gradients") as caught:
        check(geometry, geometry.output)
    assert caught.value.field == "input.dtype"


def test_an_activation_is_refused() -> None:
    geometry = Geometry.of(operation((1, 3, 8), (4, 3, 3), activation="relu"))
    with pytest.raises(InvalidConvolution, match="activation is 'relu'") as caught:
        check(geometry, geometry.output)
    assert caught.value.field == "activation"


@settings(max_examples=100)
@given(data=st.data(), dtype=st.sampled_from(["float32", "bfloat16", "complex128"]))
def test_what_is_as_the_output_is_taken(data: st.DataObject, dtype: Any) -> None:  # noqa: ANN401 - a DTypeName
    geometry = Geometry.of(data.draw(differentiable(dtype)))
    check(geometry, geometry.output)


MEASURED: list[tuple[tuple[int, ...], tuple[int, ...], Any]] = [
    ((4, 16, 96, 96), (16, 16, 3, 3), {"padding": 1}),
    ((4, 16, 96, 96), (32, 16, 3, 3), {"stride": 2, "layout": "channels_first"}),
    ((4, 96, 96, 16), (3, 3, 16, 16), {"padding": 1, "layout": "channels_last", "flip": True}),
    ((4, 48, 96, 96), (3, 48, 3, 3), {"padding": 1}),
    ((4, 32, 96, 96), (32, 1, 3, 3), {"padding": 1, "groups": 32}),
    ((4, 16, 48, 48), (16, 16, 3, 3), {"input_dilation": 2, "padding": [(1, 2), (0, -1)], "padding_mode": "reflect"}),
    ((2, 16, 96, 96), (16, 16, 3, 3), {"padding": 60, "padding_mode": "circular"}),
    ((8, 16, 64, 64), (32, 16, 3, 3), {"batch_groups": 4, "padding": 1}),
    ((4, 32, 48, 48), (32, 16, 4, 4), {"transposed": True, "stride": 2, "padding": 1}),
    ((4, 32, 64, 64), (32, 16, 3, 3), {"transposed": True}),
    ((1, 256, 4, 4), (1024, 256, 3, 3), {"padding": 1}),
    ((4, 8, 40000), (8, 8, 9), {"padding": "same"}),
]


def ones(op: Operation) -> tuple[Array, Array, Array]:
    """Input, weight and grad_output, whose pages are all written to."""
    shapes = (op.dtype, op.input_shape), (op.dtype, op.weight_shape), Geometry.of(op).output
    x, w, g = (np.full(shape, 1, TABLE[dtype].numpy) for dtype, shape in shapes)
    return x, w, g


def results(op: Operation, wanted: Wanted) -> int:
    """Bytes of the gradients."""
    return sum(prod(shape) * TABLE[dtype].itemsize for _, (dtype, shape) in outputs(Geometry.of(op), wanted))


@pytest.mark.parametrize("wanted", [INPUT, WEIGHT, EVERYTHING], ids=["input", "weight", "everything"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "complex64"])
@pytest.mark.parametrize("case", MEASURED, ids=str)
def test_the_references_memory_is_what_was_planned(case: Any, dtype: Any, wanted: Wanted) -> None:  # noqa: ANN401 - a row, a DTypeName
    input_shape, weight_shape, parameters = case
    op = operation(input_shape, weight_shape, dtype, **parameters)
    operands = ones(op)
    gradients("reference", op, *operands, wanted)  # what is imported and kept comes first
    tracemalloc.start()
    try:
        gradients("reference", op, *operands, wanted)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    planned, made = workspace_bytes(Geometry.of(op), wanted), results(op, wanted)
    assert peak <= 1.05 * (planned + made) + 100_000
    held = sum(operand.nbytes for operand in operands)
    assert planned + made + held <= 2 * (peak + held)


@pytest.fixture(scope="module")
def meter() -> Any:  # noqa: ANN401 - a generator
    meter = Meter()
    yield meter
    meter.close()


def _resident(op: Operation, wanted: Wanted) -> None:
    for grad in gradients("torch:cpu", op, *ones(op), wanted).values():
        grad.fill(0)  # pages that only read as zeros are not resident


@pytest.mark.skipif(sys.platform != "linux" or not find_spec("torch"), reason="torch's memory by Linux's /proc")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [MEASURED[i] for i in (0, 4, 6, 8)], ids=str)
def test_torchs_memory_is_about_what_was_planned(meter: Meter, case: Any, dtype: Any) -> None:  # noqa: ANN401 - a row, a DTypeName
    input_shape, weight_shape, parameters = case
    op = operation((4 * input_shape[0], *input_shape[1:]), weight_shape, dtype, **parameters)
    meter.growth(_resident, operation((4, 32, 24, 24), (32, 32, 3, 3), dtype, transposed=op.transposed), EVERYTHING)
    growth = meter.growth(_resident, op, EVERYTHING)
    held = sum(prod(shape) for shape in (op.input_shape, op.weight_shape, Geometry.of(op).output_shape))
    planned = (
        torch_workspace_bytes(Geometry.of(op), EVERYTHING) + results(op, EVERYTHING) + held * TABLE[dtype].itemsize
    )
    assert growth <= 1.25 * planned + 4 * MB
    assert planned <= 2 * growth
