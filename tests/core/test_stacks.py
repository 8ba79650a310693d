"""Stacks on each back end: against an oracle, against the same layers one by one, and what they never do."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core import oracle, test_pooling
from tests.core.operations import BACKENDS, Array, backend, small_integers
from tests.core.stack_runs import (
    Operands,
    Stack,
    assert_same,
    convolution,
    layer_weights,
    one_by_one,
    operands,
    plan_of,
    pooling,
    run,
    stacks,
)
from tests.core.test_gradients import with_specials
from tests.core.test_memory import FORMS, same_values

from convolver.core.backends import LayerWeights, Prepared, Smeared
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.errors import IntegerOverflow
from convolver.core.operation import Tensor
from convolver.core.parameters import Algorithm
from convolver.core.plan import Plan
from convolver.core.pooling import Pooling

FLOATS = [name for name, row in TABLE.items() if not row.exact]
each_backend = pytest.mark.parametrize("name", BACKENDS)
each_float = pytest.mark.parametrize("dtype", FLOATS)
seeds = st.integers(0, 2**31)


@each_backend
@each_float
@settings(max_examples=40)
@given(data=st.data(), seed=seeds)
def test_a_stack_is_its_layers_one_by_one(name: str, dtype: DTypeName, data: st.DataObject, seed: int) -> None:
    """To the last bit, with each layer's output rounded once."""
    stack = data.draw(stacks(dtype))
    given = operands(stack, seed)
    assert_same(run(name, stack, given), one_by_one(name, stack, given)[-1])


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64", "complex128"])
@settings(max_examples=40)
@given(data=st.data(), seed=seeds)
def test_outputs_are_within_the_tolerance_pushed_through(
    name: str, dtype: DTypeName, data: st.DataObject, seed: int
) -> None:
    oracle = pytest.importorskip("tests.core.stack_oracle")
    stack = data.draw(stacks(dtype))
    given = operands(stack, seed)
    made = oracle.layers(stack.steps, given)
    tolerance = 2 * oracle.forward_errors(stack.steps, given, made)[-1].y
    y, ref = run(name, stack, given), oracle.numpy(made[-1].y)
    assert y.dtype == TABLE[stack.output_dtype or dtype].numpy
    assert y.shape == ref.shape
    assert (np.abs(y.astype(ref.dtype) - ref) <= tolerance).all()


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float8_e5m2"])
@settings(max_examples=40)
@given(data=st.data(), seed=seeds)
def test_nan_and_infinity_travel_as_layer_by_layer(name: str, dtype: DTypeName, data: st.DataObject, seed: int) -> None:
    stack = data.draw(stacks(dtype))
    given = operands(stack, seed, with_specials)
    assert_same(run(name, stack, given), one_by_one(name, stack, given)[-1])


def exact(stack: Stack, given: Operands) -> list[Array]:
    """What each layer gives in Python's integers, up to the first that does not fit."""
    made, x = list[Array](), given.x
    for step, weight in zip(stack.steps, given.weights, strict=True):
        if isinstance(step, Pooling):
            y = test_pooling.by_loops(step, test_pooling.canonical(step, x))
            y = np.moveaxis(y, 1, -1) if step.layout == "channels_last" else y
            made.append(y if step.batched else y[0])
        elif weight:
            made.append(oracle.convolution(step.operation, x, *weight))
        limits = np.iinfo(step.output.dtype)
        if not all(limits.min <= value <= limits.max for value in made[-1].flat):
            return made
        x = made[-1].astype(step.output.dtype)
    return made


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int32", "int8"])
@settings(max_examples=60)
@given(data=st.data(), seed=seeds)
def test_integers_are_exact_or_the_layer_is_named(dtype: DTypeName, data: st.DataObject, seed: int) -> None:
    stack = data.draw(stacks(dtype))
    given = operands(stack, seed, small_integers)
    layers = exact(stack, given)
    limits = np.iinfo(stack.steps[len(layers) - 1].output.dtype)
    if all(limits.min <= value <= limits.max for value in layers[-1].flat):
        assert run("reference", stack, given).tolist() == layers[-1].tolist()
    else:
        with pytest.raises(IntegerOverflow, match=rf"^layers\[{len(layers) - 1}\]\.output\["):
            run("reference", stack, given)


LENET = Stack(
    Tensor("float32", (2, 1, 12, 12)),
    (
        convolution((3, 1, 5, 5), padding=2, activation="tanh"),
        pooling("average", kernel=2),
        convolution((4, 3, 3, 3), activation="relu"),
        pooling("max", kernel=2),
        convolution((5, 4, 2, 2)),
    ),
)


@each_backend
def test_each_layer_may_be_summed_by_transforms(name: str) -> None:
    given = operands(LENET, 0)
    y, direct = run(name, LENET, given, "fft"), run(name, LENET, given)
    np.testing.assert_allclose(y, direct, atol=1e-5)
    assert (y != direct).any()


@each_backend
def test_a_transform_of_nan_is_not_believed(name: str) -> None:
    given = operands(LENET, 0)
    x = given.x.copy()
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(Smeared):
        run(name, LENET, given._replace(x=x), "fft")


def _kept(prepared: Prepared, _: Plan) -> Prepared:
    return prepared


@each_backend
@pytest.mark.parametrize("algorithm", ["direct", "fft"])
def test_prepared_weights_serve_many_runs(name: str, algorithm: Algorithm) -> None:
    given, plan = operands(LENET, 0), plan_of(name, LENET, algorithm=algorithm)
    weights: list[LayerWeights | None] = []
    for layer, weight in zip(plan.layers, given.weights, strict=True):
        kept = backend(name).prepare(layer, *weight) if isinstance(layer, Plan) and weight else None
        weights.append(LayerWeights(*weight, partial(_kept, kept)) if weight and kept else None)
    for _ in range(2):
        y = backend(name).run_stack(plan, weights, given.x).output
        np.testing.assert_array_equal(y, run(name, LENET, given, algorithm))


PREPARED: list[tuple[DTypeName, dict[str, Any], Algorithm, int]] = [
    ("float32", {}, "direct", 0),
    ("float32", {"flip": True}, "direct", 4 * 24),
    ("float32", {"layout": "channels_last"}, "direct", 4 * 24),
    ("bfloat16", {}, "direct", 4 * (24 + 2)),
    ("float32", {"padding": 1}, "fft", 1),
]


@each_backend
@pytest.mark.parametrize(("dtype", "words", "algorithm", "least"), PREPARED)
def test_what_is_prepared_is_counted_beyond_the_weight(
    name: str,
    dtype: DTypeName,
    words: dict[str, Any],
    algorithm: Algorithm,
    least: int,
) -> None:
    last = words.get("layout") == "channels_last"
    layer = convolution((3, 4, 1, 2) if last else (2, 1, 3, 4), dtype=dtype, **words)
    stack = Stack(Tensor(dtype, (1, 5, 5, 1) if last else (1, 1, 5, 5)), (layer, pooling("average", kernel=1)))
    given, [plan, _] = operands(stack, 0), plan_of(name, stack, algorithm=algorithm).layers
    assert isinstance(plan, Plan)
    assert given.weights[0]
    counted = backend(name).prepared_bytes(plan, backend(name).prepare(plan, *given.weights[0]))
    assert counted > 4 * 24 if algorithm == "fft" else counted == least


def test_integers_weights_are_not_widened_until_they_run() -> None:
    stack = Stack(Tensor("int8", (1, 1, 5)), (convolution((1, 1, 2), dtype="int8"), pooling("max", kernel=2)))
    given, [plan, _] = operands(stack, 0), plan_of("reference", stack).layers
    assert isinstance(plan, Plan)
    assert given.weights[0]
    prepared = backend("reference").prepare(plan, *given.weights[0])
    assert backend("reference").prepared_bytes(plan, prepared) == 0
    assert np.shares_memory(prepared.weight, given.weights[0][0])


@each_backend
def test_of_an_empty_batch_the_output_is_empty(name: str) -> None:
    stack = Stack(Tensor("float32", (0, 1, 12, 12)), LENET.layers)
    y = run(name, stack, operands(stack, 0))
    assert (y.shape, y.dtype) == ((0, 5, 1, 1), np.dtype("float32"))


@each_backend
@pytest.mark.parametrize("form", FORMS)
def test_the_layout_in_memory_does_not_matter(name: str, form: str) -> None:
    given = operands(LENET, 1)
    weights = [weight and (same_values(weight[0], form), weight[1]) for weight in given.weights]
    y = run(name, LENET, given._replace(x=same_values(given.x, form), weights=weights))
    np.testing.assert_array_equal(y, run(name, LENET, given))


@each_backend
@pytest.mark.parametrize("layers", [(pooling("average", kernel=1),), (convolution((1, 1, 1)),), LENET.layers])
def test_inputs_are_not_written_to_and_outputs_are_the_callers_own(name: str, layers: Any) -> None:  # noqa: ANN401 - layers
    stack = Stack(Tensor("float32", (1, 1, 12, 12) if layers is LENET.layers else (1, 1, 12)), layers)
    given = operands(stack, 0)
    before = [given.x.tobytes(), *(weight[0].tobytes() for weight in given.weights if weight)]
    y = run(name, stack, given)
    y.fill(7)
    assert y.flags.c_contiguous
    assert [given.x.tobytes(), *(weight[0].tobytes() for weight in given.weights if weight)] == before


@each_backend
def test_a_convolution_must_have_weights(name: str) -> None:
    given = operands(LENET, 0)
    weights = [layer_weights(name, weight) for weight in given.weights]
    with pytest.raises(ValueError, match="weights are missing"):
        backend(name).run_stack(plan_of(name, LENET), [*weights[:-1], None], given.x)
