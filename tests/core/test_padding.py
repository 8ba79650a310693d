"""The positions that padding modes read, against NumPy, and padded inputs, against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core import oracle
from tests.core.operations import MODES, Array, Request, arrays, requests

from convolver.core.backends.arrays import canonical_input, padded, source_positions
from convolver.core.dtypes import TABLE
from convolver.core.geometry import Geometry
from convolver.core.operation import Operation, Tensor
from convolver.core.parameters import PaddingMode
from convolver.core.parse import parse

NUMPYS: dict[PaddingMode, Any] = {
    "reflect": "reflect", "symmetric": "symmetric", "replicate": "edge", "circular": "wrap",
}  # fmt: skip
copying = pytest.mark.parametrize("mode", NUMPYS)


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1.26 pads wrongly beyond the input")
@copying
@given(length=st.integers(1, 9), before=st.integers(0, 40), after=st.integers(0, 40))
def test_positions_are_those_of_numpys_pad(mode: PaddingMode, length: int, before: int, after: int) -> None:
    ours = source_positions(mode, -before, before + length + after, length)
    np.testing.assert_array_equal(ours, np.pad(np.arange(length), (before, after), NUMPYS[mode]))


@copying
@given(length=st.integers(1, 9), first=st.integers(-60, 60), count=st.integers(0, 30))
def test_positions_are_those_of_a_walk(mode: PaddingMode, length: int, first: int, count: int) -> None:
    walked = [oracle.source(mode, m, length) for m in range(first, first + count)]
    assert source_positions(mode, first, count, length).tolist() == walked


BY_HAND: dict[PaddingMode, list[int]] = {
    "reflect": [1, 2, 1, 0, 1, 2, 1, 0, 1],
    "symmetric": [2, 1, 0, 0, 1, 2, 2, 1, 0],
    "replicate": [0, 0, 0, 0, 1, 2, 2, 2, 2],
    "circular": [0, 1, 2, 0, 1, 2, 0, 1, 2],
}


@copying
def test_positions_around_three_elements_are_these(mode: PaddingMode) -> None:
    assert source_positions(mode, -3, 9, 3).tolist() == BY_HAND[mode]


@copying
def test_one_element_is_all_there_is_to_copy(mode: PaddingMode) -> None:
    assert source_positions(mode, -5, 11, 1).tolist() == [0] * 11


def prepared(op: Operation, x: Array) -> Array:
    return padded(Geometry.of(op), canonical_input(op, x), TABLE[op.dtype].numpy)


@settings(max_examples=300)
@given(requests("float64").filter(lambda request: not request.parameters["transposed"]), st.integers(0, 2**32 - 1))
def test_the_padded_input_is_the_oracles(request: Request, seed: int) -> None:
    op = request.operation
    x, *_ = arrays(op, seed)
    ours = prepared(op, x)
    np.testing.assert_array_equal(ours, oracle.padded(op, canonical_input(op, x)))
    assert ours.shape[2:] == Geometry.of(op).padded_size


@st.composite
def far(draw: st.DrawFn) -> Operation:
    """Paddings far larger than the input, and crops, with gaps between the elements."""
    ndim = draw(st.integers(1, 3))
    size = draw(st.lists(st.integers(1, 4), min_size=ndim, max_size=ndim))
    step = draw(st.lists(st.integers(1, 3), min_size=ndim, max_size=ndim))
    spans = [(n - 1) * s + 1 for n, s in zip(size, step, strict=True)]
    crops = [draw(st.integers(0, span - 1)) for span in spans]
    amounts = st.integers(0, 12 if ndim < 3 else 5)
    mode = draw(st.sampled_from(MODES))
    sides = [(-crop if crop else draw(amounts), draw(amounts)) for crop in crops]
    parameters: Any = {
        "padding": [pair[:: draw(st.sampled_from([1, -1]))] for pair in sides],
        "input_dilation": step,
        "padding_mode": mode,
        "padding_value": 2.0 if mode == "constant" else 0.0,
    }
    weight = Tensor("float64", (1, 1, *(1,) * ndim))
    return parse(Tensor("float64", (2, 1, *size)), weight, None, parameters)


@settings(max_examples=300)
@given(far(), st.integers(0, 2**32 - 1))
def test_padding_may_be_far_larger_than_what_the_crop_leaves(op: Operation, seed: int) -> None:
    x, *_ = arrays(op, seed)
    np.testing.assert_array_equal(prepared(op, x), oracle.padded(op, x))


def signal(values: list[float], **parameters: Any) -> list[float]:  # noqa: ANN401 - Parameters
    """These values, padded."""
    x = np.array(values).reshape(1, 1, -1)
    op = parse(Tensor("float64", x.shape), Tensor("float64", (1, 1, 1)), None, parameters)  # type: ignore[arg-type]  # of any kind
    made: list[float] = prepared(op, x)[0, 0].tolist()
    return made


def test_the_input_is_dilated_then_cropped_then_padded() -> None:
    padding: Any = {"padding": [(-1, 2)], "input_dilation": 3}
    assert signal([5, 6], **padding) == [0, 0, 6, 0, 0]
    assert signal([5, 6], **padding, padding_mode="replicate") == [0, 0, 6, 6, 6]
    assert signal([5, 6], **padding, padding_mode="symmetric") == [0, 0, 6, 6, 0]
    assert signal([5, 6], **padding, padding_mode="constant", padding_value=9.0) == [0, 0, 6, 9, 9]


def test_begin_and_end_are_not_mixed_up() -> None:
    assert signal([1, 2, 3], padding=[(1, 2)], padding_mode="circular") == [3, 1, 2, 3, 1, 2]
    assert signal([1, 2, 3], padding=[(-2, 1)], padding_mode="constant", padding_value=7.0) == [3, 7]


def test_an_empty_dimension_is_padding_alone() -> None:
    assert signal([], padding=[(1, 2)], padding_mode="constant", padding_value=7.0) == [7, 7, 7]


def test_nothing_is_copied_where_nothing_changes() -> None:
    x = np.ones((1, 1, 4))
    op = parse(Tensor("float64", x.shape), Tensor("float64", (1, 1, 1)), None, {})
    assert np.shares_memory(prepared(op, x), x)
