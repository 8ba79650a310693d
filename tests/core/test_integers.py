"""Integers are exact, or refused by index and value, or as overflow says; bool is sum != 0."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core import oracle
from tests.core.operations import Array, Request, arrays, requests, run

from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.errors import IntegerOverflow
from convolver.core.operation import Operation, Tensor
from convolver.core.parse import parse

INTEGERS = [name for name, row in TABLE.items() if row.exact and name != "bool"]
seeds = st.integers(0, 2**32 - 1)
each_integer = pytest.mark.parametrize("dtype", INTEGERS)


def limits(dtype: str) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)


def spread(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Numbers from the whole range of the type, some of them the ends of it."""
    low, high = limits(dtype)
    array = rng.integers(low, high, shape, dtype, endpoint=True)
    array[rng.random(shape) < 0.2] = low
    array[rng.random(shape) < 0.2] = high
    return array


def signal(x: list[Any], w: list[Any], dtype: DTypeName, bias: int | None = None, **parameters: Any) -> Array:  # noqa: ANN401 - as callers write it
    """A convolution of one channel on the reference."""
    arrays = [np.array(values, TABLE[dtype].numpy).reshape(1, 1, -1) for values in (x, w)]
    added = None if bias is None else np.array([bias], TABLE[dtype].numpy)
    headers = [Tensor(dtype, a.shape) for a in arrays]
    op = parse(headers[0], headers[1], None if added is None else Tensor(dtype, (1,)), parameters)  # type: ignore[arg-type]  # of any kind
    y: Array = run(op, arrays[0], arrays[1], added)[0, 0]
    return y


def exact(op: Operation, x: Array, w: Array, bias: Array | None) -> Array:
    """Python's integers."""
    return oracle.convolution(op, x, w, bias)


def with_overflow(request: Request, overflow: str) -> Operation:
    """The request without the activation, which comes before what overflow says."""
    parameters = {**request.parameters, "overflow": overflow, "activation": None}
    return request._replace(parameters=parameters).operation


@each_integer
@settings(max_examples=60)
@given(data=st.data(), seed=seeds)
def test_wrapped_sums_are_the_exact_ones_modulo_the_types_range(
    dtype: DTypeName, data: st.DataObject, seed: int
) -> None:
    op = with_overflow(data.draw(requests(dtype)), "wrap")
    x, w, bias = arrays(op, seed, spread)
    low, high = limits(op.output_dtype)
    expected = (exact(op, x, w, bias) - low) % (high - low + 1) + low
    assert run(op, x, w, bias).tolist() == expected.tolist()


@each_integer
@settings(max_examples=60)
@given(data=st.data(), seed=seeds)
def test_saturated_sums_are_the_nearest_of_the_type_or_beyond_64_bits(
    dtype: DTypeName, data: st.DataObject, seed: int
) -> None:
    op = with_overflow(data.draw(requests(dtype)), "saturate")
    x, w, bias = arrays(op, seed, spread)
    sums = exact(op, x, w, bias)
    try:
        y = run(op, x, w, bias)
    except IntegerOverflow:
        assert np.abs(sums).max() > 2 ** TABLE[TABLE[op.dtype].accumulator].bits * (1 - 2**-40)
        return
    assert y.tolist() == np.clip(sums, *limits(op.output_dtype)).tolist()


@each_integer
@settings(max_examples=60)
@given(data=st.data(), seed=seeds)
def test_without_either_sums_are_exact_or_refused(dtype: DTypeName, data: st.DataObject, seed: int) -> None:
    request = data.draw(requests(dtype))
    op = request.operation
    x, w, bias = arrays(op, seed, spread if seed % 2 else None)
    sums = exact(op, x, w, bias)
    low, high = limits(op.output_dtype)
    wrong = np.argwhere((sums < low) | (sums > high)) if sums.size else sums
    try:
        y = run(op, x, w, bias)
    except IntegerOverflow as error:
        refused = error.message
    else:
        assert not len(wrong)
        assert y.dtype == op.output_dtype
        assert y.tolist() == sums.tolist()
        return
    if "about" not in refused:  # else beyond 64 bits, where the value is not known to the last digit
        assert (
            f"output{wrong[0].tolist()} is {sums[tuple(wrong[0])]}, which {op.output_dtype} ({low} to {high})"
            in refused
        )


@settings(max_examples=150)
@given(request=requests("bool"), seed=seeds)
def test_bool_is_whether_the_sum_is_other_than_0(request: Request, seed: int) -> None:
    op = request.operation
    x, w, bias = arrays(op, seed)
    sums = exact(op, x, w, bias)
    expected = sums != 0 if op.output_dtype == "bool" else sums
    y = run(op, x, w, bias)
    assert y.dtype == op.output_dtype
    assert y.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("value", [2**53 - 1, 2**53, 2**53 + 1, 2**62 + 1, 2**63 - 2**14 - 1])
def test_what_a_double_could_not_hold_is_exact(dtype: DTypeName, value: int) -> None:
    assert signal([value, 1, value - 1], [1], dtype).tolist() == [value, 1, value - 1]
    assert signal([value - 1, 1], [1, 1], dtype).tolist() == [value]
    assert signal([value - 1], [1], dtype, bias=1).tolist() == [value]
    if dtype == "int64":
        assert signal([-value, 1], [1], dtype).tolist() == [-value, 1]


@pytest.mark.parametrize("bias", [0, 1])
def test_the_last_sum_that_doubles_hold_and_the_first_that_they_do_not(bias: int) -> None:
    """3 * 3002399751580330 + 1 = 2^53 - 1."""
    third = 3002399751580330
    assert signal([third] * 3, [1, 1, 1], "int64", bias=bias).tolist() == [3 * third + bias]
    assert signal([third] * 3, [1, 1, 1], "int64", bias=bias + 2).tolist() == [3 * third + bias + 2]


def test_unsigned_sums_reach_beyond_2_to_the_63() -> None:
    assert signal([2**63 + 3, 2**64 - 2**15 - 1], [1], "uint64").tolist() == [2**63 + 3, 2**64 - 2**15 - 1]
    assert (
        signal([2**32 - 1] * 2, [2**31 + 1], "uint32", output_dtype="uint64").tolist()
        == [(2**32 - 1) * (2**31 + 1)] * 2
    )


def test_terms_beyond_64_bits_may_cancel() -> None:
    assert signal([2**62, 2**62 + 1], [3, -3], "int64").tolist() == [-3]


@pytest.mark.parametrize("overflow", ["error", "saturate"])
@pytest.mark.parametrize(("dtype", "value"), [("int64", 2**62), ("int64", -(2**62)), ("uint64", 2**63)])
def test_sums_beyond_64_bits_are_refused_with_their_index_and_about_their_value(
    dtype: DTypeName, value: int, overflow: str
) -> None:
    with pytest.raises(
        IntegerOverflow,
        match=rf"output\[0, 0, 1\] is about {re.escape(f'{value * 3.0:.6g}')}, beyond what {dtype} sums",
    ):
        signal([1, value], [3], dtype, overflow=overflow)


@pytest.mark.parametrize("overflow", ["error", "saturate"])
def test_a_sum_just_beyond_64_bits_is_refused_though_its_shadow_is_just_below(overflow: str) -> None:
    """The sum is 2^63 + 125, but as doubles its terms are 2^62, 2^61 and 2^61 - 768, and their sum 2^63 - 1024."""
    with pytest.raises(IntegerOverflow, match=r"output\[0, 0, 0\] is about 9\.22337e\+18"):
        signal([2**62 + 511, 2**61 + 255, 2**61 - 641], [1, 1, 1], "int64", overflow=overflow)


def test_the_index_is_in_the_callers_layout() -> None:
    x, w = np.array([[[1, 0], [0, 100]]], np.int8), np.full((1, 2, 1), 2, np.int8)
    op = parse(Tensor("int8", (1, 2, 2)), Tensor("int8", (1, 2, 1)), None, {"layout": "channels_last"})
    with pytest.raises(IntegerOverflow, match=r"output\[0, 1, 0\] is 200"):
        run(op, x, w)
    wide = parse(Tensor("int64", (2, 2)), Tensor("int64", (1, 2, 1)), None, {"layout": "channels_last"})
    with pytest.raises(IntegerOverflow, match=r"output\[1, 0\] is about"):
        run(wide, x[0].astype(np.int64) << 50, w.astype(np.int64) << 8)


OUT_OF_RANGE: dict[DTypeName, tuple[list[int], int]] = {
    "int8": ([100, 127], 128),
    "int16": ([0, 2**15 - 1], 2**15),
    "int32": ([0, 2**31 - 1], 2**31),
    "uint8": ([0, 255], 256),
    "uint16": ([0, 2**16 - 1], 2**16),
    "uint32": ([0, 2**32 - 1], 2**32),
}


@pytest.mark.parametrize("dtype", OUT_OF_RANGE)
def test_one_beyond_the_type_is_refused_saturated_or_wrapped(dtype: DTypeName) -> None:
    values, beyond = OUT_OF_RANGE[dtype]
    low, high = limits(dtype)
    with pytest.raises(IntegerOverflow) as caught:
        signal(values, [1], dtype, bias=1)
    assert caught.value.message == f"output[0, 0, 1] is {beyond}, which {dtype} ({low} to {high}) does not hold"
    assert signal(values, [1], dtype, bias=1, overflow="saturate").tolist() == [values[0] + 1, high]
    assert signal(values, [1], dtype, bias=1, overflow="wrap").tolist() == [values[0] + 1, low]


@pytest.mark.parametrize(("overflow", "expected"), [("saturate", -128), ("wrap", 1)])
def test_below_the_type_as_well(overflow: str, expected: int) -> None:
    assert signal([-127], [1], "int8", bias=-128, overflow=overflow).tolist() == [expected]
    with pytest.raises(IntegerOverflow, match=r"is -255, which int8 \(-128 to 127\)"):
        signal([-127], [1], "int8", bias=-128)


def test_a_wider_output_holds_what_the_inputs_type_does_not() -> None:
    assert signal([127] * 3, [127] * 3, "int8", output_dtype="int32").tolist() == [3 * 127**2]
    assert signal([True] * 5, [True] * 5, "bool", output_dtype="uint8").tolist() == [5]
    assert signal([2**31 - 1] * 2, [1, 1], "int32", output_dtype="float64").tolist() == [2**32 - 2.0]


@pytest.mark.parametrize(("overflow", "expected"), [("saturate", 2**63 - 1), ("wrap", -(2**33) + 1)])
def test_a_signed_output_of_unsigned_sums_beyond_2_to_the_63(overflow: str, expected: int) -> None:
    most = 2**32 - 1
    assert signal([most], [most], "uint32", output_dtype="int64", overflow=overflow).tolist() == [expected]
    with pytest.raises(IntegerOverflow, match=f"is {most**2}, which int64"):
        signal([most], [most], "uint32", output_dtype="int64")


def test_a_float_output_is_rounded_once() -> None:
    """2^25 + 2^17 + 1 lies just above the middle of two bfloat16; rounded to float32 first it would lie upon it."""
    ones, rest = [127] * 2088, [127, 25]
    y = signal([*ones, *rest], [*ones, 64, 1], "int8", output_dtype="bfloat16")
    assert y.dtype == ml_dtypes.bfloat16
    assert float(y[0]) == 2**25 + 2**18


def test_relu_of_integers() -> None:
    assert signal([-5, 5], [1], "int8", activation="relu").tolist() == [0, 5]
    assert signal([-100, 100], [2], "int8", activation="relu", overflow="saturate").tolist() == [0, 127]


def test_an_empty_batch_has_no_sums_to_overflow() -> None:
    op = parse(Tensor("int8", (0, 2, 4)), Tensor("int8", (3, 2, 2)), Tensor("int8", (3,)), {})
    y = run(op, np.zeros((0, 2, 4), np.int8), np.ones((3, 2, 2), np.int8), np.ones(3, np.int8))
    assert y.shape == (0, 3, 3)
    assert y.dtype == np.int8
