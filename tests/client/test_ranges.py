from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convolver.client.pictures import FilterError
from convolver.client.pictures._choices import Range
from convolver.client.pictures._ranges import map_range

RANGES: tuple[Range, ...] = ("clip", "absolute", "offset", "stretch")
FLOATS = st.lists(st.floats(-(2.0**100), 2.0**100), min_size=1, max_size=20)


def mapped(values: list[float], mapping: Range, dtype: str) -> list[Any]:
    (result,) = map_range([np.array(values, np.float64)], mapping, np.dtype(dtype))
    assert result.dtype == dtype
    return result.tolist()  # type: ignore[no-any-return]  # NumPy's tolist is Any


@pytest.mark.parametrize(
    ("mapping", "dtype", "values", "expected"),
    [
        ("clip", "uint8", [-3, 0, 7.4, 7.6, 255, 300], [0, 0, 7, 8, 255, 255]),
        ("clip", "uint16", [-3, 300, 65535, 70000], [0, 300, 65535, 65535]),
        ("clip", "int8", [-200, -3, 200], [-128, -3, 127]),
        ("clip", "float32", [-0.5, 0.25, 1.5], [0, 0.25, 1]),
        ("absolute", "uint8", [-3, 5, -300], [3, 5, 255]),
        ("absolute", "float32", [-0.5, 0.25, -7], [0.5, 0.25, 1]),
        ("offset", "uint8", [-200, -1, 0, 1, 200], [0, 127, 128, 129, 255]),
        ("offset", "uint16", [-1, 0, 1], [32767, 32768, 32769]),
        ("offset", "int16", [-1, 0, 40000], [-1, 0, 32767]),
        ("offset", "float64", [-0.75, 0, 0.25], [0, 0.5, 0.75]),
        ("stretch", "uint8", [-10, 0, 10], [0, 128, 255]),
        ("stretch", "int8", [2, 4], [-128, 127]),
        ("stretch", "float32", [3, 4, 7], [0, 0.25, 1]),
        ("stretch", "uint8", [5, 5], [0, 0]),
        ("stretch", "uint8", [0, 5e-324], [0, 255]),
    ],
)
def test_results_are_mapped_into_the_range_of_the_type(
    mapping: Range, dtype: str, values: list[float], expected: list[float]
) -> None:
    assert mapped(values, mapping, dtype) == expected


def test_halves_are_rounded_to_even() -> None:
    assert mapped([0.5, 1.5, 2.5], "clip", "uint8") == [0, 2, 2]


def test_stretch_maps_all_results_by_one_function() -> None:
    results = map_range([np.array([0.0, 10.0]), np.array([5.0, 20.0])], "stretch", np.dtype(np.uint8))
    assert [result.tolist() for result in results] == [[0, 128], [64, 255]]


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("mapping", RANGES)
@given(values=FLOATS)
def test_nothing_wraps_around(mapping: Range, dtype: str, values: list[float]) -> None:
    order = np.argsort(np.abs(values) if mapping == "absolute" else values, kind="stable")
    result = np.array(mapped(values, mapping, dtype), object)[order].tolist()
    assert result == sorted(result)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "uint32"])
def test_values_beyond_the_type_become_its_end_within_a_float(dtype: str) -> None:
    top = np.iinfo(dtype).max
    assert top - 2048 <= mapped([1e30], "clip", dtype)[0] <= top


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_no_integer_can_hold_is_refused(value: float) -> None:
    with pytest.raises(FilterError, match="not finite, which no uint8 can hold"):
        mapped([1, value], "clip", "uint8")


def test_a_float_keeps_its_nan_and_stretches_the_rest() -> None:
    result = mapped([np.nan, 2, 4], "stretch", "float32")
    assert np.isnan(result[0])
    assert result[1:] == [0, 1]
