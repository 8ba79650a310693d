"""The planned memory of stacks is what really happens: resident memory while they run, forward and back."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
from tests.core.operations import Array
from tests.core.resident import THREADS, Meter
from tests.core.stack_runs import Stack, convolution, pooling

from convolver.core.backends import Backend, LayerWeights, Prepared, available
from convolver.core.choose_stack import choose_stack
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution, Tensor
from convolver.core.parameters import Algorithm
from convolver.core.plan import Plan
from convolver.core.stack_plan import StackPlan

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="measured through Linux's /proc"),
    pytest.mark.timeout(600),  # stacks of up to a second each, which a busy machine makes minutes
]
needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="no torch")
each_backend = pytest.mark.parametrize("name", ["reference", pytest.param("torch:cpu", marks=needs_torch)])

MB = 1 << 20
EVERYTHING = Wanted(input=True, weight=True, bias=True)


@pytest.fixture(scope="module")
def meter() -> Iterator[Meter]:
    meter = Meter()
    yield meter
    meter.close()


def plan_of(name: str, stack: Stack, wanted: Wanted | None = None, algorithm: Algorithm = "direct") -> StackPlan:
    execution = Execution(backend=name, algorithm=algorithm)
    return choose_stack(stack.steps, execution, [back_end(name).capability], None, wanted)


@cache
def back_end(name: str) -> Backend:
    return available(name, THREADS)[0]


def ones(header: Tensor) -> Array:
    return np.full(header.shape, 1, TABLE[header.dtype].numpy)


def weights_of(name: str, layer: Plan) -> LayerWeights:
    op = layer.operation
    weight, bias = ones(Tensor(op.dtype, op.weight_shape)), ones(Tensor(op.dtype, (op.out_channels,)))

    def prepared(plan: Plan) -> Prepared:
        return back_end(name).prepare(plan, weight, bias)

    return LayerWeights(weight, bias, prepared)


def executed(name: str, plan: StackPlan) -> None:
    """The stack on arrays that are made here, and each page of the answer written to."""
    weights = [weights_of(name, layer) if isinstance(layer, Plan) else None for layer in plan.layers]
    x = ones(plan.input)
    if plan.wanted:
        outcome = back_end(name).stack_gradients(plan, weights, x, ones(plan.output))
    else:
        outcome = back_end(name).run_stack(plan, weights, x)
    for output in outcome.outputs.values():
        output.fill(0)


def measured(meter: Meter, name: str, made: Callable[[int], StackPlan]) -> tuple[int, int]:
    """Bytes that were planned, and by which memory grows; a small one goes before, which pays for what comes once."""
    meter.growth(executed, name, made(40))
    plan = made(800)
    growth = min(meter.growth(executed, name, plan) for _ in range(2))
    return plan.peak_bytes, growth


def stack_of(kind: str, size: int, dtype: DTypeName) -> Stack:
    """Layers over a picture."""
    three = convolution((4, 3, 3, 3), dtype=dtype, padding=1, activation="gelu")
    four = convolution((4, 4, 3, 3), dtype=dtype, padding=1)
    one = convolution((1, 4, 1, 1), dtype=dtype, activation="relu")
    layers = {
        "plain": (three, four, one),
        "pooled": (three, pooling("max", kernel=2), four, pooling("average", kernel=3)),
        "growing": (three, convolution((4, 2, 2, 2), dtype=dtype, stride=2, transposed=True), pooling("max", kernel=2)),
        "adaptive": (convolution((4, 3, 3, 3), dtype=dtype, padding=1), pooling("adaptive_average", output_size=7)),
    }
    return Stack(Tensor(dtype, (1, 3, size, size)), layers[kind])


KINDS = ["plain", "pooled", "growing", "adaptive"]


@each_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_forward_run_takes_what_was_planned(meter: Meter, name: str, kind: str, dtype: DTypeName) -> None:
    planned, growth = measured(meter, name, lambda size: plan_of(name, stack_of(kind, size, dtype)))
    assert growth <= (1.02 if name == "reference" else 1.25) * planned
    assert planned <= 1.5 * growth


@each_backend
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_take_no_more_than_was_planned(meter: Meter, name: str, kind: str, dtype: DTypeName) -> None:
    planned, growth = measured(meter, name, lambda size: plan_of(name, stack_of(kind, size, dtype), EVERYTHING))
    assert growth <= (1.02 if name == "reference" else 1.25) * planned
    assert planned <= 2 * growth
