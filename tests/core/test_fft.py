"""Convolutions by Fourier transforms: the same meaning, with an error bound of their own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.core import oracle
from tests.core.operations import BACKENDS, Array, arrays, backend, operation, requests

from convolver.core import tiling
from convolver.core.backends import Smeared
from convolver.core.choose import choose
from convolver.core.dtypes import DTypeName
from convolver.core.errors import Unsupported
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Operation
from convolver.core.tiling import fast_length

each_backend = pytest.mark.parametrize("name", BACKENDS)
FLOATS: tuple[DTypeName, ...] = (
    "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float32", "float64", "complex64", "complex128",
)  # fmt: skip


def by_fft(op: Operation, x: Array, w: Array, bias: Array | None, name: str) -> Array:
    chosen = backend(name)
    plan = choose(Geometry.of(op), Execution(backend=name, algorithm="fft"), [chosen.capability])
    assert plan.algorithm == "fft"
    return chosen.run(plan, chosen.prepare(plan, w, bias), x).output


def assert_within_the_bound(op: Operation, x: Array, w: Array, bias: Array | None, name: str) -> None:
    ref = oracle.convolution(op, x, w, bias)
    with np.errstate(all="ignore"):
        off = np.abs(by_fft(op, x, w, bias, name).astype(ref.dtype) - ref)
    if off.size:
        allowed = oracle.bound(op, 4 * np.max(oracle.scale(op, x, w, bias)), ref)
        assert np.all(off <= allowed), f"off by {np.max(off / allowed)} times the bound"


@each_backend
@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
@settings(max_examples=40)
def test_results_are_within_their_bound_of_the_oracles(name: str, dtype: DTypeName, data: st.DataObject) -> None:
    op = data.draw(requests(dtype)).operation
    assume(not tiling.refusal(Geometry.of(op)))
    assert_within_the_bound(op, *arrays(op, data.draw(st.integers(0, 9))), name)


LARGE: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 1, 5000), (1, 1, 129), {"padding": "same"}),
    ((1, 1, 5000), (1, 1, 129), {"stride": 7}),
    ((1, 1, 5000), (1, 1, 4000), {"padding": "full"}),
    ((1, 1, 700, 500), (1, 1, 9, 9), {"padding": (1, 4)}),
    ((1, 1, 300, 200), (1, 1, 31, 25), {"padding": 12, "stride": 3}),
    ((1, 4, 64, 64), (8, 2, 17, 17), {"groups": 2, "dilation": 2}),
    ((2, 16, 40, 40), (16, 16, 9, 9), {"padding": "same", "padding_mode": "reflect"}),
    ((4, 6, 40, 40), (6, 6, 9, 9), {"batch_groups": 2}),
    ((1, 1, 40, 40, 40), (1, 1, 9, 9, 9), {}),
    ((1, 20, 60, 60), (20, 1, 15, 15), {"groups": 20, "stride": (1, 40)}),
    ((1, 8, 30, 30), (8, 16, 9, 9), {"transposed": True, "stride": 2, "padding": 3, "output_padding": 1}),
]


@each_backend
@pytest.mark.parametrize(("input", "weight", "parameters"), LARGE, ids=str)
def test_many_tiles_and_blocks_make_one_output(name: str, input: Any, weight: Any, parameters: Any) -> None:  # noqa: ANN401 - as callers write it
    op = operation(input, weight, "float32", **parameters)
    assert_within_the_bound(op, *arrays(op, 3), name)


@each_backend
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_a_transform_would_spread_over_the_whole_output_is_not_believed(name: str, value: float) -> None:
    op = operation((2, 1, 64), (1, 1, 9))
    x, w, _ = arrays(op, 3)
    spoilt = x.copy()
    spoilt[1, 0, 40] = value
    with pytest.raises(Smeared):
        by_fft(op, spoilt, w, None, name)


def test_some_of_them_have_several_tiles_blocks_and_matrices() -> None:
    tilings = [tiling.tiling(Geometry.of(operation(x, w, "float32", **kw))) for x, w, kw in LARGE]
    assert max(tiles.tiles for tiles in tilings) > 4
    assert any(tiles.launches > tiles.tiles for tiles in tilings)
    assert any(
        count > 1 < stride
        for tiles in tilings
        for count, stride in zip(tiles.counts, tiles.geometry.operation.stride, strict=True)
    )
    assert {tiles.by_matrices for tiles in tilings} == {True, False}


@pytest.mark.parametrize("padding", [(5, -3), (4, -3)], ids=str)
def test_where_nothing_of_the_input_is_left_there_is_no_fft(padding: tuple[int, int]) -> None:
    op = operation((1, 1, 2), (1, 1, 3), "float32", transposed=True, padding=[padding])
    with pytest.raises(Unsupported, match="wholly beside the input"):
        choose(Geometry.of(op), Execution(algorithm="fft"), [backend("reference").capability])
    reached = operation((1, 1, 2), (1, 1, 3), "float32", transposed=True, padding=[(3, -3)])
    assert_within_the_bound(reached, *arrays(reached, 0), "reference")


HUGE: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((0, 1, 2**20), (1, 1, 3), {"stride": 2**31 - 1, "input_dilation": 2**31 - 1}),
    ((0, 1, 4), (1, 1, 3), {"padding": 2**30 - 3}),
]


@each_backend
@pytest.mark.parametrize(("input", "weight", "parameters"), HUGE, ids=str)
def test_an_empty_batch_has_no_tiles_however_many_there_would_be(
    name: str,
    input: Any,  # noqa: ANN401 - as callers write it
    weight: Any,  # noqa: ANN401 - as callers write it
    parameters: Any,  # noqa: ANN401 - as callers write it
) -> None:
    op = operation(input, weight, "float32", **parameters)
    assert by_fft(op, *arrays(op, 0), name).shape == Geometry.of(op).output_shape


def test_weights_beyond_the_transforms_range_warn_nobody() -> None:
    op = operation((1, 1, 8), (1, 1, 3), "bfloat16", output_dtype="float32")
    x, w, _ = arrays(op, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Smeared):
            by_fft(op, x, np.full_like(w, 3e38), None, "reference")


@pytest.mark.parametrize("least", [1, 2, 3, 7, 11, 13, 1000, 2**19 + 1, 3 * 2**19, 2**31 - 1])
def test_fast_lengths_are_even_and_have_small_factors(least: int) -> None:
    length = fast_length(least)
    assert least <= length < 2 * least + 2
    assert length % 2 == 0
    for factor in (2, 3, 5):
        while length % factor == 0:
            length //= factor
    assert length == 1
