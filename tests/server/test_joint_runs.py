"""Requests that run together get what each would get alone: of every kind, on every back end."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.core import oracle
from tests.core.operations import BACKENDS, Array, arrays, backend, operation, requests, small_integers, usual
from tests.core.stack_runs import Stack, assert_same, operands, stacks
from tests.core.test_backends import with_specials

from convolver.core import joint
from convolver.core.choose import choose
from convolver.core.choose_stack import choose_stack
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.errors import IntegerOverflow
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Operation, Tensor
from convolver.core.parameters import Overflow
from convolver.core.plan import Limits, Plan
from convolver.core.stack_plan import StackPlan
from convolver.server.engine import Engine, Held
from convolver.server.jobs import Job, Source
from convolver.server.layers import LayerStore
from convolver.v1 import convolution_pb2, tensor_pb2

EXACT = [name for name, row in TABLE.items() if row.exact]
FLOATS = [name for name, row in TABLE.items() if not row.exact]
Weights = list[tuple[Array, Array | None] | None]

each_backend = pytest.mark.parametrize("name", BACKENDS)
seeds = st.integers(0, 2**31)
members = st.lists(st.none() | st.integers(1, 4), min_size=2, max_size=4)
"""Items of each request, None for an unbatched one."""


@cache
def engine(name: str) -> Engine:
    return Engine([backend(name)], Limits(), LayerStore(10**8))


def shaped(inner: tuple[int, ...], items: int | None) -> tuple[int, ...]:
    return inner if items is None else (items, *inner)


class Requests:
    """That have the same weights; `plans` are theirs."""

    def __init__(self, name: str, plans: list[Plan | StackPlan], weights: Weights) -> None:
        self.engine, self.plans = engine(name), plans
        self.names: tuple[Source | None, ...] = tuple(
            given and Source("", f"{i}.weight", "" if given[1] is None else f"{i}.bias")
            for i, given in enumerate(weights)
        )
        self.held: Held = (None,) * len(weights)
        self.arrays = {
            f"{i}.{kind}": array
            for i, given in enumerate(weights)
            for kind, array in zip(("weight", "bias"), given or (), strict=False)
            if array is not None
        }

    def alone(self, inputs: list[Array]) -> list[Array]:
        jobs = [Job(plan, {}, self.names) for plan in self.plans]
        given = [{**self.arrays, "input": x} for x in inputs]
        runs = [self.engine.run(job, self.held, each) for job, each in zip(jobs, given, strict=True)]
        return [run.outputs["output"] for run in runs]

    def together(self, inputs: list[Array]) -> list[Array]:
        companies = [joint.company(plan) for plan in self.plans]
        assert len({company.key for company in companies}) == 1
        job, arrays_ = Job(self.plans[0], {}, self.names), {**self.arrays, "input": inputs[0]}
        ran = self.engine.joint_runs.run(job, companies[0], self.held, arrays_, inputs)
        assert ran.plan.input.shape[0] == sum(company.items for company in companies)
        return ran.outputs

    def check_integers(self, inputs: list[Array]) -> None:
        """Together each is the same as alone, and all overflow where one does."""
        try:
            expected = self.alone(inputs)
        except IntegerOverflow:
            with pytest.raises(IntegerOverflow):
                self.together(inputs)
            return
        for y, alone in zip(self.together(inputs), expected, strict=True):
            assert_same(y, alone)


def singles(name: str, op: Operation, counts: list[int | None]) -> list[Operation]:
    """The operation with so many items each; those that may not run together are none of this file's."""
    assume(op.batch_groups == 1)
    inner = op.input_shape[1:] if op.batched else op.input_shape
    ops = [replace(op, input_shape=shaped(inner, items)) for items in counts]
    assume(all(joint.company(plan).key for plan in plans_of(name, ops)))
    return ops


def plans_of(name: str, ops: list[Operation]) -> list[Plan | StackPlan]:
    execution = Execution(backend=name, algorithm="direct")
    return [choose(Geometry.of(op), execution, [backend(name).capability]) for op in ops]


def inputs_of(shapes: list[tuple[int, ...]], dtype: DTypeName, seed: int, draw: Any = usual) -> list[Array]:  # noqa: ANN401 - a Draw
    rng = np.random.default_rng(seed)
    return [draw(rng, dtype, shape) for shape in shapes]


@each_backend
@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=8)
@given(data=st.data(), counts=members, seed=seeds)
def test_each_output_is_within_the_tolerance(
    name: str, dtype: DTypeName, data: st.DataObject, counts: list[int | None], seed: int
) -> None:
    ops = singles(name, data.draw(requests(dtype)).operation, counts)
    _, w, bias = arrays(ops[0], seed)
    inputs = inputs_of([op.input_shape for op in ops], dtype, seed)
    outputs = Requests(name, plans_of(name, ops), [(w, bias)]).together(inputs)
    for op, x, y in zip(ops, inputs, outputs, strict=True):
        oracle.assert_agrees(op, y, x, w, bias)


def within_range(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Small integers, some of them as large as the type has them."""
    array, row = small_integers(rng, dtype, shape), TABLE[dtype]
    if row.kind != "bool":
        array[rng.random(shape) < 0.03] = np.iinfo(dtype).max
    return array


@pytest.mark.parametrize("dtype", EXACT)
@settings(max_examples=25)
@given(data=st.data(), counts=members, seed=seeds, overflow=st.sampled_from(["error", "saturate", "wrap"]))
def test_integers_are_the_same_and_overflow_where_one_does(
    dtype: DTypeName, data: st.DataObject, counts: list[int | None], seed: int, overflow: Overflow
) -> None:
    name = "reference"  # which alone has integers
    ops = singles(name, replace(data.draw(requests(dtype)).operation, overflow=overflow), counts)
    _, w, bias = arrays(ops[0], seed, small_integers)
    inputs = inputs_of([op.input_shape for op in ops], dtype, seed, data.draw(st.sampled_from([usual, within_range])))
    Requests(name, plans_of(name, ops), [(w, bias)]).check_integers(inputs)


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@settings(max_examples=15)
@given(data=st.data(), seed=seeds)
def test_nan_and_infinity_stay_with_their_request(name: str, dtype: DTypeName, data: st.DataObject, seed: int) -> None:
    ops = singles(name, data.draw(requests(dtype)).operation, [2, None, 1])
    _, w, bias = arrays(ops[0], seed)
    inputs = inputs_of([op.input_shape for op in ops], dtype, seed)
    inputs[1] = with_specials(np.random.default_rng(seed), dtype, ops[1].input_shape)
    outputs = Requests(name, plans_of(name, ops), [(w, bias)]).together(inputs)
    for i in (0, 2):
        oracle.assert_agrees(ops[i], outputs[i], inputs[i], w, bias)


def stacked(name: str, stack: Stack, counts: list[int | None]) -> tuple[list[Stack], list[Plan | StackPlan]]:
    """The stack for inputs of so many items each, and their plans."""
    dtype, shape = stack.input
    [*_, plain] = [step for step in stack.steps if isinstance(step, Geometry)]
    inner = shape[-1 - plain.ndim :]
    each = [stack._replace(input=Tensor(dtype, shaped(inner, items))) for items in counts]
    execution, capabilities = Execution(backend=name, algorithm="direct"), [backend(name).capability]
    return each, [choose_stack(one.steps, execution, capabilities) for one in each]


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
@settings(max_examples=15)
@given(data=st.data(), counts=members, seed=seeds)
def test_stacks_are_within_the_tolerance(
    name: str, dtype: DTypeName, data: st.DataObject, counts: list[int | None], seed: int
) -> None:
    oracle = pytest.importorskip("tests.core.stack_oracle")
    each, plans = stacked(name, data.draw(stacks(dtype)), counts)
    own = operands(each[0], seed)
    inputs = inputs_of([one.input.shape for one in each], dtype, seed)
    for one, x, y in zip(each, inputs, Requests(name, plans, own.weights).together(inputs), strict=True):
        made = oracle.layers(one.steps, own._replace(x=x))
        tolerance = 2 * oracle.forward_errors(one.steps, own._replace(x=x), made)[-1].y
        ref = oracle.numpy(made[-1].y)
        assert (y.dtype, y.shape) == (TABLE[one.output_dtype or dtype].numpy, ref.shape)
        assert (np.abs(y.astype(ref.dtype) - ref) <= tolerance).all()


@pytest.mark.parametrize("dtype", ["int32", "int8"])
@settings(max_examples=25)
@given(data=st.data(), counts=members, seed=seeds)
def test_stacks_of_integers_are_the_same_and_overflow_where_one_does(
    dtype: DTypeName, data: st.DataObject, counts: list[int | None], seed: int
) -> None:
    name = "reference"
    each, plans = stacked(name, data.draw(stacks(dtype)), counts)
    inputs = inputs_of([one.input.shape for one in each], dtype, seed)
    Requests(name, plans, operands(each[0], seed, small_integers).weights).check_integers(inputs)


@each_backend
@pytest.mark.parametrize("counts", [[1, 1], [1, None, 3], [2, 5, None]], ids=str)
def test_a_layer_that_stays_prepared_for_one_serves_all(name: str, counts: list[int | None]) -> None:
    """On torch's CPU it is packed for the shape of the first."""
    op = operation((1, 64, 8, 8), (128, 64, 3, 3), padding=1)
    ops = [replace(op, input_shape=shaped((64, 8, 8), items)) for items in counts]
    w = arrays(op, 1, small_integers)[1]
    inputs = inputs_of([each.input_shape for each in ops], "float32", 2, small_integers)
    given = Requests(name, plans_of(name, ops), [(w, None)])
    definition = convolution_pb2.LayerDefinition(
        weight=tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=w.shape)
    )
    layer = given.engine.store.put(definition.SerializeToString(), w, None)
    expected = given.alone(inputs)
    given.held, given.names, given.arrays = (layer,), (Source(layer.digest),), {}
    for _ in range(2):
        for y, alone in zip(given.together(inputs), expected, strict=True):
            assert_same(y, alone)


@each_backend
def test_other_weights_under_the_same_plan_are_prepared_anew(name: str) -> None:
    op = operation((2, 3, 6, 6), (4, 3, 3, 3))
    [x] = inputs_of([op.input_shape], "float32", 0, small_integers)
    for seed in range(2):
        w = arrays(op, seed, small_integers)[1]
        given = Requests(name, plans_of(name, [op, op]), [(w, None)])
        for y in given.together([x, x]):
            assert_same(y, oracle.convolution(op, x, w).astype(np.float32))
