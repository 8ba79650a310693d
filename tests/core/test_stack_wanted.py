"""Which gradients the layers of a stack compute, and what they cost, from integers."""

from __future__ import annotations

import pytest

from convolver.core.choose import Capability
from convolver.core.choose_stack import choose_stack
from convolver.core.dtypes import TABLE
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution, Tensor
from convolver.core.stack import ConvolutionLayer, parse_stack
from convolver.core.stack_plan import StackPlan

CAPABILITY = Capability("reference", "cpu", 2, 2**30, frozenset(TABLE))
FIRST, SECOND = 2 * 6 * 6 * 9, 4 * 4 * 4 * 2 * 9
"""Products of the two convolutions."""


def planned(*, input: bool, weight: bool, bias: bool) -> StackPlan:
    """Pooling, a convolution, pooling, a convolution."""
    convolutions = [ConvolutionLayer(Tensor("float32", shape), None, {}) for shape in ((2, 1, 3, 3), (4, 2, 3, 3))]
    layers = [{"kind": "max", "kernel": 1}, convolutions[0], {"kind": "average", "kernel": 1}, convolutions[1]]
    steps = parse_stack(Tensor("float32", (1, 1, 8, 8)), layers, {})  # type: ignore[arg-type]  # mypy infers a list of objects
    return choose_stack(steps, Execution(), [CAPABILITY], None, Wanted(input, weight, bias))


def test_the_gradient_of_an_input_is_computed_where_a_layer_before_needs_it_and_nowhere_else() -> None:
    plan = planned(input=False, weight=True, bias=False)
    assert [plan.wanted_of(i) for i in range(4)] == [
        None,
        Wanted(input=False, weight=True, bias=False),
        Wanted(input=True, weight=False, bias=False),
        Wanted(input=True, weight=True, bias=False),
    ]


@pytest.mark.parametrize(
    ("input", "weight", "bias", "macs"),
    [
        (False, True, False, FIRST + FIRST + 2 * SECOND),
        (True, False, False, FIRST + FIRST + SECOND),
        (True, True, True, FIRST + 2 * FIRST + 2 * SECOND),
        (False, False, True, FIRST + SECOND),
    ],
)
def test_products_count_the_forward_run_and_each_gradient(input: bool, weight: bool, bias: bool, macs: int) -> None:  # noqa: FBT001 - a row of the table
    assert planned(input=input, weight=weight, bias=bias).macs == macs
