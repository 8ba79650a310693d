"""Each back end against the oracle, on every float type, over requests of every kind; and what they never do."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core import oracle
from tests.core.operations import (
    BACKENDS,
    Array,
    Request,
    arrays,
    backend,
    operation,
    requests,
    run,
    small_integers,
    usual,
)

from convolver.core import methods
from convolver.core.backends import available
from convolver.core.choose import choose
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.geometry import Geometry
from convolver.core.operation import LARGEST, Execution, Tensor
from convolver.core.parse import parse

FLOATS = [name for name, row in TABLE.items() if not row.exact]
each_backend = pytest.mark.parametrize("name", BACKENDS)
each_float = pytest.mark.parametrize("dtype", FLOATS)
seeds = st.integers(0, 2**32 - 1)


def rows(values: Any, dtype: str = "float32") -> Array:  # noqa: ANN401 - a list
    """(1, 1, length), read-only."""
    array: Array = np.array(values, TABLE[dtype].numpy).reshape(1, 1, -1)
    array.flags.writeable = False
    return array


@each_backend
@pytest.mark.parametrize(
    ("shape", "kernel", "stride"),
    [
        ((1, 24, 5, 1), (4, 4, 1, 2), (1, 3)),
        ((3, 17, 5, 1), (1, 4, 1, 8), (1, 2)),
        ((3, 6, 5, 1), (4, 4, 1, 1), (1, 3)),
    ],
)
def test_one_channel_that_is_the_last_is_not_taken_for_the_first(
    name: str, shape: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, int]
) -> None:
    op = operation(shape, kernel, stride=stride, layout="channels_last")
    x, w, _ = arrays(op, 0, small_integers)
    np.testing.assert_array_equal(run(op, x, w, None, name), oracle.convolution(op, x, w, None))


@each_backend
@each_float
@settings(max_examples=120)
@given(data=st.data(), seed=seeds)
def test_results_are_within_the_tolerance_of_the_oracles(
    name: str, dtype: DTypeName, data: st.DataObject, seed: int
) -> None:
    op = data.draw(requests(dtype)).operation
    x, w, bias = arrays(op, seed)
    before = [a.tobytes() for a in (x, w, bias) if a is not None]
    y = run(op, x, w, bias, name)
    oracle.assert_agrees(op, y, x, w, bias)
    assert [a.tobytes() for a in (x, w, bias) if a is not None] == before


@each_backend
@each_float
@settings(max_examples=60)
@given(data=st.data(), seed=seeds)
def test_small_whole_numbers_give_the_exact_sum_rounded_once(
    name: str, dtype: DTypeName, data: st.DataObject, seed: int
) -> None:
    request = data.draw(requests(dtype))
    op = request._replace(parameters={**request.parameters, "activation": None}).operation
    x, w, bias = arrays(op, seed, small_integers)
    with np.errstate(over="ignore"):
        expected = oracle.convolution(op, x, w, bias).astype(TABLE[op.output_dtype].numpy)
    np.testing.assert_array_equal(run(op, x, w, bias, name).astype(np.complex128), expected.astype(np.complex128))


def with_specials(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Normal numbers, a few of them NaN or infinite."""
    array = usual(rng, dtype, shape)
    places = rng.random(shape) < 0.1
    array[places] = rng.choice([np.nan, np.inf, -np.inf], size=int(places.sum()))
    return array


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2", "float32", "float64"])
@settings(max_examples=60)
@given(data=st.data(), seed=seeds)
def test_nan_and_infinity_reach_what_they_touch_and_nothing_else(
    name: str, dtype: DTypeName, data: st.DataObject, seed: int
) -> None:
    request = data.draw(requests(dtype))
    op = request._replace(parameters={**request.parameters, "activation": None}).operation
    _, w, bias = arrays(op, seed)
    x, *_ = arrays(op, seed, with_specials)
    ref, y = oracle.convolution(op, x, w, bias), run(op, x, w, bias, name).astype(np.float64)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(ref))
    np.testing.assert_array_equal(y[np.isinf(ref)], ref[np.isinf(ref)])
    assert np.isfinite(y[np.isfinite(ref)]).all()


@each_backend
def test_zero_times_infinity_is_nan(name: str) -> None:
    y = run(operation((1, 1, 3), (1, 1, 1)), rows([1, np.inf, 2]), rows([0]), name=name)
    np.testing.assert_array_equal(y, rows([0, np.nan, 0]))


OVERFLOWS: dict[DTypeName, tuple[float, float]] = {
    "float16": (300, np.inf),
    "bfloat16": (2e19, np.inf),
    "float8_e4m3fn": (32, np.nan),  # it has no infinity
    "float8_e5m2": (256, np.inf),
    "float32": (2e19, np.inf),
    "float64": (2e154, np.inf),
}


@each_backend
@pytest.mark.parametrize("dtype", OVERFLOWS)
def test_what_is_too_large_for_the_type_becomes_what_ieee_says(name: str, dtype: DTypeName) -> None:
    value, expected = OVERFLOWS[dtype]
    x = rows([value, -value, 1], dtype)
    y = run(operation(x.shape, (1, 1, 1), dtype), x, rows([value], dtype), name=name)
    np.testing.assert_array_equal(
        y.astype(np.float64)[0, 0],
        [expected, -expected, x.astype(np.float64)[0, 0, 2] * rows([value], dtype).astype(np.float64)[0, 0, 0]],
    )


@each_backend
def test_narrow_floats_are_summed_in_float32_and_rounded_once(name: str) -> None:
    x = rows([2048, 1, 1, 1], "float16")
    y = run(operation(x.shape, (1, 1, 4), "float16"), x, rows([1] * 4, "float16"), name=name)
    assert float(y[0, 0, 0]) == 2052.0  # 2051 rounds to it; a float16 sum would stay at 2048


@each_backend
def test_narrow_floats_are_rounded_after_the_bias_alone(name: str) -> None:
    x, w, bias = rows([2048, 1], "float16"), rows([1, 1], "float16"), np.ones(1, np.float16)
    op = parse(Tensor("float16", x.shape), Tensor("float16", w.shape), Tensor("float16", bias.shape), {})
    assert float(run(op, x, w, bias, name)[0, 0, 0]) == 2050.0  # 2049 rounds to 2048, and so does 2048 + 1


@each_backend
def test_a_wider_output_widens_the_sum(name: str) -> None:
    x = rows([2**24, 1, 1])
    y = run(operation(x.shape, (1, 1, 3), output_dtype="float64"), x, rows([1, 1, 1]), name=name)
    assert y.dtype == np.float64
    assert float(y[0, 0, 0]) == 2**24 + 2


@each_backend
def test_flip_turns_the_kernel(name: str) -> None:
    y = run(operation((1, 1, 3), (1, 1, 2), flip=True), rows([1, 10, 100]), rows([1, 2]), name=name)
    np.testing.assert_array_equal(y, rows([12, 120]))


@each_backend
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_flip_of_a_single_element_is_the_element(name: str, ndim: int) -> None:
    op = operation((2, 3, *(4,) * ndim), (5, 3, *(1,) * ndim), flip=True)
    x, w, _ = arrays(op, 0)
    oracle.assert_agrees(op, run(op, x, w, name=name), x, w)


@each_backend
@pytest.mark.parametrize("weight", [(6, 3, 1), (6, 3, 3), (4, 1, 3)], ids=str)
def test_batch_groups_are_consecutive_parts_of_the_batch(name: str, weight: tuple[int, int, int]) -> None:
    op = operation((6, weight[1], 5), weight, batch_groups=2)
    x, w, _ = arrays(op, 0)
    oracle.assert_agrees(op, run(op, x, w, name=name), x, w)


@pytest.mark.parametrize("sizes", [(1, 1), (1 << 8, 1 << 6), (1 << 12, 1 << 12)], ids=str)
@settings(max_examples=100)
@given(drawn=requests("float64"), seed=seeds)
def test_blocks_of_any_size_give_the_same(sizes: tuple[int, int], drawn: Request, seed: int) -> None:
    op = drawn.operation
    x, w, bias = arrays(op, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "COLUMNS_BYTES", sizes[0])
        patch.setattr(methods, "SHIFT_BYTES", sizes[1])
        y = run(op, x, w, bias)
    oracle.assert_agrees(op, y, x, w, bias)


OUTSIDE = [
    ({"padding": [(7, -10)]}, "after the end"),
    ({"padding": [(5, -8)]}, "just after the end"),
    ({"padding": [(-10, 7)]}, "before the beginning"),
    ({"padding": [(-2, -3)]}, "around"),
    ({"padding": [(3, -4)], "stride": 4, "output_padding": 3}, "with output_padding"),
    ({"padding": 4, "stride": 10, "output_padding": 9}, "symmetric, with output_padding"),
]


@each_backend
@pytest.mark.parametrize("parameters", [p for p, _ in OUTSIDE], ids=[i for _, i in OUTSIDE])
def test_transposed_positions_that_nothing_reaches_hold_the_bias(name: str, parameters: Any) -> None:  # noqa: ANN401 - Parameters
    x, w, bias = (Tensor("float32", shape) for shape in ((1, 1, 3), (1, 2, 3), (2,)))
    op = parse(x, w, bias, {"transposed": True, **parameters})  # type: ignore[typeddict-item]  # of any kind
    operands = arrays(op, 0)
    y = run(op, *operands, name)
    oracle.assert_agrees(op, y, *operands)
    assert (y == operands[2][:, np.newaxis]).any()  # type: ignore[index]  # it has one


@each_backend
def test_the_same_bits_come_again(name: str) -> None:
    op = operation((2, 16, 32, 32), (16, 16, 3, 3), padding="same")
    x, w, _ = arrays(op, 3)
    assert len({run(op, x, w, name=name).tobytes() for _ in range(4)}) == 1


@each_backend
def test_weights_prepared_once_serve_many_inputs(name: str) -> None:
    op = operation((1, 3, 8, 8), (4, 3, 3, 3), flip=True)
    chosen = backend(name)
    plan = choose(Geometry.of(op), Execution(), [chosen.capability])
    _, w, _ = arrays(op, 0)
    prepared = chosen.prepare(plan, w, None)
    for seed in (1, 2, 1):
        x, *_ = arrays(op, seed)
        outcome = chosen.run(plan, prepared, x)
        oracle.assert_agrees(op, outcome.output, x, w)
        assert set(outcome.seconds) == {"copy_in", "compute", "copy_out"}
        assert min(outcome.seconds.values()) >= 0


EMPTY: list[tuple[tuple[int, ...], tuple[int, ...], Any]] = [
    ((0, 2, 5), (3, 2, 2), {}),
    ((0, 2, 5), (2, 3, 2), {"transposed": True}),
    ((0, 2, 1, 2), (4, 2, 1, 1), {"padding": [(0, 0), (1, -2)], "padding_mode": "reflect", "input_dilation": 2}),
    ((0, 1, LARGEST, 7), (1, 1, 3, 2), {"padding": 1, "padding_mode": "replicate"}),
    ((0, 1, 1, 1, 1), (1, 1, 1, 1, 1), {"padding": LARGEST // 2, "stride": LARGEST}),
]


@each_backend
@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_an_empty_batch_is_computed_without_a_thought(name: str, case: Any) -> None:  # noqa: ANN401 - a row of the table
    input_shape, weight_shape, parameters = case
    op = operation(input_shape, weight_shape, **parameters)
    y = run(op, np.empty(input_shape, np.float32), np.ones(weight_shape, np.float32), name=name)
    assert y.shape == Geometry.of(op).output_shape
    assert y.dtype == np.float32


@each_backend
@pytest.mark.parametrize("mode", ["zeros", "constant"])
def test_an_empty_dimension_is_padding_and_bias(name: str, mode: str) -> None:
    value = 3.0 if mode == "constant" else 0.0
    padding: Any = {"padding": [(0, 0), (1, 2)], "input_dilation": (3, 2), "padding_mode": mode, "padding_value": value}
    op = operation((1, 2, 3, 0), (4, 2, 2, 2), **padding)
    x, w, _ = arrays(op, 0)
    oracle.assert_agrees(op, run(op, x, w, name=name), x, w)


def test_names_stand_for_the_back_ends_of_this_machine() -> None:
    assert [b.capability.name for b in available("reference", 1)] == ["reference"]
    assert available("auto", 1)[0].capability.name == "reference"
    assert available("nonsense", 1) == []


def test_without_torch_the_reference_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "convolver.core.backends.torch", raising=False)
    assert [b.capability.name for b in available("auto", 1)] == ["reference"]
    with pytest.raises(ImportError):
        available("torch", 1)


@each_backend
def test_a_back_end_says_what_it_can_do(name: str) -> None:
    capability = backend(name).capability
    assert capability.name == name
    assert capability.threads == 1
    assert capability.memory_bytes > 2**28
    assert capability.dtypes == (set(TABLE) if name == "reference" else set(FLOATS))
