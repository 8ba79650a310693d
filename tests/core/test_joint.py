"""What may run together: requests that differ in their numbers of batch items alone, and nothing that is large."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.operations import BACKENDS, Request, backend, operation
from tests.core.stack_runs import EVERYTHING, Stack, convolution, pooling

from convolver.core.choose import choose
from convolver.core.choose_stack import choose_stack
from convolver.core.geometry import Geometry
from convolver.core.joint import Company, company, joined
from convolver.core.operation import Execution, Tensor
from convolver.core.plan import Plan
from convolver.core.stack_plan import StackPlan, step_of

INNER = (4, 5, 5)
"""Channels and pixels, or pixels and channels; with the weight (4, 4, 4, 4) in both layouts a request."""

PARAMETERS: dict[str, list[Any]] = {
    "stride": [1, (1, 2)],
    "dilation": [1, (2, 1)],
    "padding": [4, 5, [(4, 5), (4, 4)], [(4, 4), (5, 4)]],
    "padding_mode": ["zeros", "reflect", "symmetric", "replicate", "circular"],
    "flip": [False, True],
    "activation": ["none", "relu"],
    "overflow": ["error", "saturate", "wrap"],
    "output_dtype": ["int16", "int32", "int64"],
    "input_dilation": [1, (1, 2)],
}
EXECUTION: dict[str, list[Any]] = {
    "precision": ["highest", "high", "medium"],
    "algorithm": ["auto", "direct"],
    "backend": ["auto", "reference"],
}
CHOICES = {**PARAMETERS, **EXECUTION}
choices = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()})
counts = st.none() | st.integers(1, 9)
SMALL = Request(Tensor("float32", (2, 1, 5)), Tensor("float32", (1, 1, 3)), None, {})


def chosen(request: Request, execution: Execution | None = None, wanted: Any = None) -> Plan:  # noqa: ANN401 - Wanted or None
    capabilities = [backend("reference").capability]
    return choose(Geometry.of(request.operation), execution or Execution(), capabilities, None, wanted)


def plan_of(words: dict[str, Any], items: int | None, **how: Any) -> Plan:  # noqa: ANN401 - of Execution
    """Of int16 sums; None for an unbatched input."""
    shape = INNER if items is None else (items, *INNER)
    parameters = {name: value for name, value in words.items() if name in PARAMETERS}
    execution = Execution(**{name: words[name] for name in EXECUTION}, **how)
    return chosen(Request(Tensor("int16", shape), Tensor("int16", (4, 4, 4, 4)), None, parameters), execution)


def plain(**words: Any) -> Plan:  # noqa: ANN401 - as callers write them
    """One small convolution of float32, with these parameters or another `input`, `weight`, `bias` or `dtype`."""
    dtype, x, w = words.pop("dtype", "float32"), words.pop("input", (2, 4, 5, 5)), words.pop("weight", (4, 4, 4, 4))
    bias = Tensor(dtype, (w[0],)) if words.pop("bias", False) else None
    padding = 1 if "transposed" in words else 4  # which it crops
    return chosen(Request(Tensor(dtype, x), Tensor(dtype, w), bias, {"padding": padding, **words}))


def stack_plan(items: int | None, wanted: Any = None, *layers: Any, **how: Any) -> StackPlan:  # noqa: ANN401 - Wanted or None
    shape = (3, 9, 9) if items is None else (items, 3, 9, 9)
    layers = layers or (convolution((4, 3, 3, 3)), pooling("max", kernel=2), convolution((2, 4, 2, 2)))
    stack = Stack(Tensor("float32", shape), tuple(layers))
    return choose_stack(stack.steps, Execution(**how), [backend("reference").capability], None, wanted)


@settings(max_examples=60)
@given(words=choices, one=counts, other=counts)
def test_the_number_of_items_and_the_priority_make_no_difference(
    words: dict[str, Any], one: int | None, other: int | None
) -> None:
    first, second = company(plan_of(words, one)), company(plan_of(words, other, priority="bulk"))
    assert first.key
    assert (first.key, first.reason) == (second.key, second.reason) == (first.key, "alone")
    assert (first.items, second.items) == (one or 1, other or 1)


@settings(max_examples=200)
@given(words=choices, one=counts, other=counts, name=st.sampled_from(sorted(CHOICES)), data=st.data())
def test_any_other_parameter_makes_a_difference(
    words: dict[str, Any], one: int | None, other: int | None, name: str, data: st.DataObject
) -> None:
    value = data.draw(st.sampled_from([value for value in CHOICES[name] if value != words[name]]))
    assert company(plan_of(words, one)).key != company(plan_of({**words, name: value}, other)).key


@pytest.mark.parametrize(
    "words",
    [
        {"input": (2, 4, 5, 6)},
        {"input": (2, 8, 5, 5), "groups": 2},
        {"weight": (8, 4, 4, 4)},
        {"weight": (4, 4, 4, 3)},
        {"weight": (4, 4, 4), "input": (2, 4, 5)},
        {"weight": (4, 2, 4, 4), "groups": 2},
        {"bias": True},
        {"dtype": "float64"},
        {"dtype": "float16"},
        {"transposed": True},
        {"transposed": True, "stride": 2, "output_padding": 1},
        {"transposed": True, "stride": 2},
        {"layout": "channels_last", "input": (2, 5, 5, 4)},
        {"padding_mode": "constant", "padding_value": 1.0},
        {"padding_mode": "constant", "padding_value": 2.0},
    ],
    ids=str,
)
def test_so_does_another_kind(words: dict[str, Any]) -> None:
    others = [plain(), plain(padding_mode="constant"), plain(transposed=True, stride=2, output_padding=(1, 0))]
    key = company(plain(**words)).key
    assert key
    assert key not in [company(other).key for other in others]


def test_an_unbatched_input_is_not_taken_for_a_batch_of_its_channels() -> None:
    square: Any = {"input": (5, 5, 5), "weight": (4, 5, 4, 4)}
    assert company(plain(**square)).items == 1
    assert company(plain(input=(5, 5, 5, 5), weight=(4, 5, 4, 4))).key == company(plain(**square)).key


@pytest.mark.skipif(not find_spec("torch"), reason="no torch")
def test_the_back_end_that_was_chosen_makes_a_difference() -> None:
    """Though the caller left it to the server."""
    geometry = Geometry.of(operation((2, 4, 5, 5), (4, 4, 3, 3)))
    plans = [choose(geometry, Execution(), [backend(name).capability]) for name in ("reference", "torch:cpu")]
    assert [plan.backend for plan in plans] == ["reference", "torch:cpu"]
    assert company(plans[0]).key != company(plans[1]).key


def test_stacks_have_keys_of_all_their_layers() -> None:
    layers = [convolution((4, 3, 3, 3)), pooling("max", kernel=2), convolution((2, 4, 2, 2))]
    changed = [
        [convolution((4, 3, 3, 3), activation="relu"), *layers[1:]],
        [layers[0], pooling("average", kernel=2), layers[2]],
        [layers[0], pooling("max", kernel=3), layers[2]],
        [*layers[:2], convolution((2, 4, 2, 2), bias=False)],
        layers[:2],
        layers[:1],
    ]
    keys = [company(stack_plan(2, None, *each)).key for each in (layers, *changed)]
    assert all(keys)
    assert len(set(keys)) == len(keys)
    assert company(stack_plan(None)) == Company(keys[0], "alone", 1)
    assert company(stack_plan(7, priority="bulk")) == Company(keys[0], "alone", 7)


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        (lambda: plan_of({**{name: values[0] for name, values in CHOICES.items()}}, 2, deterministic=True), "d"),
        (lambda: stack_plan(2, deterministic=True), "d"),
        (lambda: stack_plan(2, EVERYTHING, deterministic=True), "d"),
        (lambda: stack_plan(2, EVERYTHING), "i"),
        (lambda: chosen(SMALL, None, EVERYTHING), "i"),
        (lambda: plain(input=(0, 4, 5, 5)), "i"),
        (lambda: stack_plan(0), "i"),
        (lambda: plain(batch_groups=2), "i"),
        (lambda: plain(input=(1, 16, 256, 256), weight=(16, 16, 3, 3)), "l"),
        (lambda: plain(input=(1, 1, 4096, 1024), weight=(1, 1, 1, 1), padding=0), "l"),
        (lambda: stack_plan(1, None, convolution((64, 3, 3, 3), padding=200), pooling("max", kernel=2)), "l"),
        (lambda: chosen(SMALL, Execution(algorithm="fft")), "l"),
    ],
    ids=[
        "deterministic", "a deterministic stack", "deterministic gradients", "gradients of a stack", "gradients",
        "no items", "a stack of no items", "batch groups", "many sums", "many bytes", "a large stack", "an FFT",
    ],
)  # fmt: skip
def test_what_runs_alone_says_why(plan: Any, reason: str) -> None:  # noqa: ANN401 - makes a plan
    words = {"d": "deterministic", "i": "ineligible", "l": "large"}
    found = company(plan())
    assert (found.key, found.reason) == (b"", words[reason])


def test_a_large_layer_of_few_pixels_may_run_with_others() -> None:
    """For its weights, which are most of what is read, are read once."""
    plan = plain(input=(1, 512, 14, 14), weight=(512, 512, 3, 3), padding=1)
    assert company(plan).key
    assert not company(plain(input=(64, 512, 14, 14), weight=(512, 512, 3, 3), padding=1)).key


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("items", [1, 3, 40])
def test_the_joined_plan_is_of_the_same_back_end_by_direct_sums(name: str, items: int) -> None:
    capabilities = [backend("reference").capability, backend(name).capability]
    alone = choose(Geometry.of(operation((4, 5, 5), (4, 4, 3, 3))), Execution(backend=name), capabilities)
    plan = joined(alone, items, capabilities)
    assert isinstance(plan, Plan)
    assert (plan.backend, plan.algorithm, plan.input.shape) == (name, "direct", (items, 4, 5, 5))


@pytest.mark.parametrize("items", [1, 3, 40])
def test_the_joined_plan_of_a_stack_has_so_many_items_in_every_layer(items: int) -> None:
    plan = joined(stack_plan(None), items, [backend("reference").capability])
    assert isinstance(plan, StackPlan)
    assert [step_of(layer).output.shape[0] for layer in plan.layers] == [items] * 3
    assert plan.input.shape == (items, 3, 9, 9)
