"""Gradients of stacks on each back end: against autograd, against the same layers one by one, and what they need."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.core.operations import ACTIVATIONS, BACKENDS, Array, backend
from tests.core.stack_runs import (
    EVERYTHING,
    Operands,
    Stack,
    assert_same,
    convolution,
    gradients,
    gradients_one_by_one,
    layer_weights,
    operands,
    plan_of,
    pooling,
    run,
    stacks,
)
from tests.core.test_gradients import with_specials

from convolver.core.backends import LayerWeights, Prepared
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.parameters import Activation
from convolver.core.plan import Plan

FLOATS = [name for name, row in TABLE.items() if not row.exact]
each_backend = pytest.mark.parametrize("name", BACKENDS)
each_float = pytest.mark.parametrize("dtype", FLOATS)
seeds = st.integers(0, 2**31)


@each_backend
@each_float
@settings(max_examples=40)
@given(data=st.data(), seed=seeds)
def test_gradients_are_those_of_its_layers_one_by_one(
    name: str, dtype: DTypeName, data: st.DataObject, seed: int
) -> None:
    stack = data.draw(stacks(dtype))
    given = operands(stack, seed)
    found, expected = gradients(name, stack, given), gradients_one_by_one(name, stack, given)
    assert set(found) == set(expected)
    for each, grad in found.items():
        assert_same(grad, expected[each], each)


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
@settings(max_examples=80)
@given(data=st.data(), seed=seeds)
def test_gradients_are_autograds(name: str, dtype: DTypeName, data: st.DataObject, seed: int) -> None:
    """Where no sum is so near to a kink, and no maximum to another element, that their slopes are in doubt."""
    oracle = pytest.importorskip("tests.core.stack_oracle")
    stack = data.draw(stacks(dtype))
    given = operands(stack, seed)
    made = oracle.layers(stack.steps, given)
    errors = oracle.forward_errors(stack.steps, given, made)
    assume(all(each.sure for each in errors))
    expected = oracle.gradients(stack.steps, given, made, errors)
    found = gradients(name, stack, given)
    assert set(found) == set(expected)
    for each, grad in found.items():
        assert (np.abs(grad - expected[each].ref) <= 2 * expected[each].error).all(), each


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "float8_e5m2"])
@settings(max_examples=40)
@given(data=st.data(), seed=seeds)
def test_nan_and_infinity_travel_as_layer_by_layer(name: str, dtype: DTypeName, data: st.DataObject, seed: int) -> None:
    stack = data.draw(stacks(dtype))
    given = operands(stack, seed, with_specials)
    found, expected = gradients(name, stack, given), gradients_one_by_one(name, stack, given)
    for each, grad in found.items():
        assert_same(grad, expected[each], each)


SUBSETS = [Wanted(*each) for each in product((True, False), repeat=3) if any(each)]


@each_backend
@pytest.mark.parametrize("wanted", SUBSETS, ids=str)
@settings(max_examples=25)
@given(data=st.data(), seed=seeds)
def test_any_of_them_come_alone(name: str, wanted: Wanted, data: st.DataObject, seed: int) -> None:
    stack = data.draw(stacks("float32"))
    given = operands(stack, seed)
    everything, found = gradients(name, stack, given), gradients(name, stack, given, wanted)
    headers = plan_of(name, stack, wanted).outputs
    assert [(each, grad.dtype, grad.shape) for each, grad in found.items()] == [
        (each, TABLE[dtype].numpy, shape) for each, (dtype, shape) in headers.items()
    ]
    asked = {"grad_input": wanted.input, "grad_weight": wanted.weight, "grad_bias": wanted.bias}
    assert set(found) == {each for each in everything if asked[each.partition(".")[2] or each]}
    for each, grad in found.items():
        np.testing.assert_array_equal(grad, everything[each], each)


def lenet(activation: Activation, dtype: DTypeName = "float64", items: int = 2) -> Stack:
    return Stack(
        Tensor(dtype, (items, 1, 12, 12)),
        (
            convolution((3, 1, 5, 5), dtype=dtype, padding=2, activation=activation),
            pooling("max", kernel=2),
            convolution((4, 3, 3, 3), dtype=dtype, activation=activation),
            pooling("average", kernel=2),
            convolution((5, 4, 2, 2), dtype=dtype, activation=activation),
        ),
    )


def moved(given: Operands, along: dict[str, Array], by: float) -> Operands:
    """The operands a little further along a direction, named as gradients are."""
    weights: list[tuple[Array, Array | None] | None] = []
    for i, weight in enumerate(given.weights):
        if weight is None or weight[1] is None:
            weights.append(None)
            continue
        moves = (by * along[f"layers[{i}].{each}"] for each in ("grad_weight", "grad_bias"))
        weights.append((weight[0] + next(moves), weight[1] + next(moves)))
    return given._replace(x=given.x + by * along["grad_input"], weights=weights)


@each_backend
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_they_are_the_slope_of_the_output(name: str, activation: Activation) -> None:
    """By central differences along a random direction of all operands."""
    stack, rng = lenet(activation), np.random.default_rng(3)
    given = operands(stack, 11)
    found = gradients(name, stack, given)
    along, step = {each: rng.standard_normal(grad.shape) for each, grad in found.items()}, 1e-6
    ahead, behind = (float(np.vdot(given.g, run(name, stack, moved(given, along, by)))) for by in (step, -step))
    expected = sum(float(np.vdot(along[each], grad)) for each, grad in found.items())
    assert (ahead - behind) / (2 * step) == pytest.approx(expected, rel=1e-6, abs=1e-7)


def never(_: Plan) -> Prepared:
    raise AssertionError("this layer need not run forward")


@each_backend
def test_a_last_layer_without_activation_does_not_run_forward(name: str) -> None:
    dtype: DTypeName = "bfloat16"
    layers = convolution((2, 1, 2), dtype=dtype, activation="silu"), convolution((1, 2, 3), dtype=dtype)
    stack = Stack(Tensor(dtype, (1, 1, 9)), layers)
    given = operands(stack, 0)
    assert given.weights[1]
    first, last = layer_weights(name, given.weights[0]), LayerWeights(*given.weights[1], never)
    found = backend(name).stack_gradients(plan_of(name, stack, EVERYTHING), [first, last], given.x, given.g).outputs
    assert found.keys() == gradients(name, stack, given).keys()


@each_backend
def test_one_convolution_has_the_gradients_of_a_single_one(name: str) -> None:
    stack = Stack(Tensor("bfloat16", (2, 3, 9)), (convolution((4, 3, 3), dtype="bfloat16", padding=1),))
    given = operands(stack, 0)
    assert given.weights[0]
    [layer] = plan_of(name, stack).layers
    assert isinstance(layer, Plan)
    alone = backend(name).gradients(
        replace(layer, wanted=EVERYTHING), EVERYTHING, given.weights[0][0], given.x, given.g
    )
    found = gradients(name, stack, given)
    assert list(found) == ["grad_input", "layers[0].grad_weight", "layers[0].grad_bias"]
    for grad, expected in zip(found.values(), alone.outputs.values(), strict=True):
        np.testing.assert_array_equal(grad, expected)


@each_backend
@pytest.mark.parametrize("last", [pooling("average", kernel=2), convolution((1, 1, 2), activation="tanh")], ids=str)
def test_with_respect_to_reals_only_the_real_part_counts(name: str, last: Any) -> None:  # noqa: ANN401 - a layer
    stack = Stack(Tensor("float32", (1, 1, 9)), (convolution((1, 1, 2)), last), "complex64")
    given = operands(stack, 0)
    assert given.g.dtype == np.complex64
    real = given._replace(g=np.ascontiguousarray(given.g.real))
    found, expected = gradients(name, stack, given), gradients(name, stack._replace(output_dtype=None), real)
    for each, grad in found.items():
        np.testing.assert_array_equal(grad, expected[each])


@each_backend
def test_of_an_empty_batch_they_are_zero(name: str) -> None:
    stack = lenet("gelu", "float32", items=0)
    plan = plan_of(name, stack, EVERYTHING)
    found = gradients(name, stack, operands(stack, 0))
    assert {each: grad.shape for each, grad in found.items()} == {
        each: shape for each, (_, shape) in plan.outputs.items()
    }
    assert not any(grad.any() for grad in found.values())


@each_backend
def test_operands_are_not_written_to(name: str) -> None:
    stack = lenet("hardswish")
    given = operands(stack, 0)
    arrays = [given.x, given.g, *(each for weight in given.weights if weight for each in weight if each is not None)]
    before = [array.tobytes() for array in arrays]
    for grad in gradients(name, stack, given).values():
        grad.fill(7)
    assert [array.tobytes() for array in arrays] == before
