"""Rates: what is learnt of a machine's speed, and what its estimates start from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.operations import backend, operation
from tests.core.stack_runs import EVERYTHING, Stack, convolution, pooling

from convolver.core import cost
from convolver.core.choose import Capability, choose
from convolver.core.choose_stack import choose_stack
from convolver.core.dtypes import TABLE
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution, Tensor
from convolver.core.parameters import Algorithm
from convolver.core.plan import Plan
from convolver.core.rates import Key, Rates, base_seconds, key
from convolver.core.stack_plan import PoolingPlan, StackPlan

CAPABILITIES = [
    backend("reference").capability,
    *(Capability(name, "cpu", 2, 2**34, frozenset(TABLE), ("direct", "fft")) for name in ("torch:cpu", "torch:cuda:0")),
]
KEY = Key("reference", "direct", "float32", "2d")
STACK = Stack(
    Tensor("float32", (2, 3, 20, 20)),
    (
        convolution((8, 3, 3, 3), activation="relu"),
        pooling("max", kernel=[2, 2]),
        convolution((4, 8, 3, 3), activation="gelu"),
    ),
)


def plan(backend: str = "torch:cpu", algorithm: Algorithm = "direct", wanted: Wanted | None = None) -> Plan:
    geometry = Geometry.of(operation((1, 3, 40, 40), (8, 3, 5, 5)))
    return choose(geometry, Execution(backend=backend, algorithm=algorithm), CAPABILITIES, None, wanted)


def stack_plan(wanted: Wanted | None = None) -> StackPlan:
    return choose_stack(STACK.steps, Execution(backend="torch:cpu", algorithm="direct"), CAPABILITIES, None, wanted)


def test_estimates_start_as_the_cost_models() -> None:
    made = plan()
    assert Rates().seconds(made) == base_seconds(made) == cost.seconds_of(made) + cost.overhead("torch:cpu")


@pytest.mark.parametrize("times", [0.01, 0.5, 3.0, 40.0])
def test_what_is_always_so_much_slower_is_learnt(times: float) -> None:
    rates, made = Rates(), plan()
    for _ in range(60):
        rates.learn(key(made), base_seconds(made), times * base_seconds(made))
    assert rates.factor(key(made)) == pytest.approx(times, rel=0.02)
    assert rates.seconds(made) == pytest.approx(times * base_seconds(made), rel=0.02)


def test_measurements_that_vary_give_their_geometric_mean() -> None:
    rates = Rates()
    for measured in [1.0, 4.0] * 60:
        rates.learn(KEY, 1.0, measured)
    assert rates.factor(KEY) == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("times", [1e-9, 1e9])
def test_a_single_outlier_changes_an_estimate_by_a_third_and_is_forgotten(times: float) -> None:
    rates = Rates()
    rates.learn(KEY, 1.0, times)
    assert 0.7 < rates.factor(KEY) < 1.4
    for _ in range(20):
        rates.learn(KEY, 1.0, 1.0)
    assert rates.factor(KEY) == pytest.approx(1.0, rel=0.01)


def test_what_one_key_learns_no_other_one_does() -> None:
    rates, made = Rates(), plan()
    rates.learn(key(made), 1.0, 2.0)
    for other in (
        plan("reference"),
        plan(algorithm="fft"),
        plan(wanted=EVERYTHING),
        stack_plan(),
        stack_plan(EVERYTHING),
    ):
        assert rates.seconds(other) == base_seconds(other)
    assert rates.seconds(made) > base_seconds(made)


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=300))
def test_no_measurement_makes_a_factor_that_is_not_positive_and_finite(pairs: list[tuple[float, float]]) -> None:
    rates = Rates()
    for base, measured in pairs:
        rates.learn(KEY, base, measured)
        assert 1e-5 < rates.factor(KEY) < 1e5


@pytest.mark.parametrize("measured", [0.0, -1.0, math.nan, math.inf])
def test_what_is_no_duration_teaches_nothing(measured: float) -> None:
    rates = Rates()
    rates.learn(KEY, 1.0, measured)
    assert rates.factor(KEY) == 1.0


def test_the_same_ratio_for_ever_stays_within_bounds() -> None:
    rates = Rates()
    for _ in range(300):
        rates.learn(KEY, 1e-300, 1e300)
    assert rates.factor(KEY) == pytest.approx(1e4)


def test_a_key_says_who_runs_what() -> None:
    transposed = Geometry.of(operation((1, 2, 9), (2, 2, 3), "float64", transposed=True))
    assert key(plan()) == Key("torch:cpu", "direct", "float32", "2d")
    assert key(plan("torch:cuda", "fft")) == Key("torch:cuda:0", "fft", "float32", "2d")
    assert key(plan(wanted=EVERYTHING)).kind == "gradients 2d"
    assert key(choose(transposed, Execution(backend="reference"), CAPABILITIES)).kind == "transposed 1d"
    assert key(stack_plan()) == Key("torch:cpu", "direct", "float32", "stack")
    assert key(stack_plan(EVERYTHING)).kind == "stack gradients"


def test_shapes_do_not_make_keys() -> None:
    plans = [
        choose(Geometry.of(operation((n, 2, n, n), (2, 2, 3, 3))), Execution(backend="reference"), CAPABILITIES)
        for n in range(4, 40)
    ]
    assert len(set(map(key, plans))) <= 2  # direct and FFT


def test_a_stack_takes_what_its_layers_take() -> None:
    made = stack_plan()
    each = [
        cost.pooling_seconds(layer.pooling, "torch:cpu") if isinstance(layer, PoolingPlan) else base_seconds(layer)
        for layer in made.layers
    ]
    assert base_seconds(made) == pytest.approx(sum(each))


def test_a_stacks_gradients_take_more_than_its_output_and_less_where_fewer_are_wanted() -> None:
    fewer = Wanted(input=False, weight=True, bias=False)
    assert base_seconds(stack_plan()) < base_seconds(stack_plan(fewer)) < base_seconds(stack_plan(EVERYTHING))


def test_gradients_of_weight_and_input_take_about_twice_as_long_as_one_of_them() -> None:
    one, both = (plan(wanted=Wanted(input=given, weight=True, bias=False)) for given in (False, True))
    assert base_seconds(both) == pytest.approx(2 * base_seconds(one), rel=0.05)


def test_no_plan_takes_less_than_a_call() -> None:
    bias_alone = plan(wanted=Wanted(input=False, weight=False, bias=True))
    empty = Geometry.of(operation((0, 3, 9, 9), (8, 3, 5, 5)))
    nothing = choose(empty, Execution(backend="torch:cpu"), CAPABILITIES)
    assert base_seconds(bias_alone) >= cost.overhead("torch:cpu")
    assert base_seconds(nothing) >= cost.overhead("torch:cpu")


def test_more_threads_take_less_time() -> None:
    large = Geometry.of(operation((8, 64, 56, 56), (64, 64, 3, 3)))
    made = choose(large, Execution(backend="torch:cpu", algorithm="direct"), CAPABILITIES)
    assert base_seconds(replace(made, threads=2)) < base_seconds(replace(made, threads=1))
