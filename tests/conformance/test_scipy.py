"""SciPy's convolutions and correlations over grids, through the service with parameters that say the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage, signal  # type: ignore[import-untyped]  # SciPy has no types of its own
from tests.conformance import scipy_case
from tests.conformance.refusals import assert_refused
from tests.conformance.scipy_case import Convolution
from tests.conformance.served import Served
from tests.conformance.tolerance import assert_agrees

Array = NDArray[Any]
Shape = tuple[int, ...]

INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float32", "float64", "complex64", "complex128"]
NAMES = ["convolve", "correlate"]

PAIRS: list[tuple[Shape, Shape]] = [
    *itertools.product([(1,), (4,), (7,)], [(1,), (2,), (3,), (4,), (9,)]),
    ((6, 7), (3, 2)), ((5, 4), (4, 4)), ((2, 3), (5, 4)), ((4, 4), (4, 4)),
    ((4, 5, 3), (2, 3, 3)), ((5, 4, 6), (1, 4, 2)), ((2, 1, 3), (3, 2, 3)),
]  # fmt: skip
"""First and second arrays, of which one fits inside the other."""

CROSSED: list[tuple[Shape, Shape]] = [((2, 3), (3, 2)), ((4, 5, 3), (2, 6, 3))]
"""Neither fits inside the other."""

SIZES: list[tuple[Shape, Shape]] = [
    *itertools.product([(1,), (2,), (5,)], [(1,), (2,), (3,), (4,), (7,)]),
    ((5, 6), (3, 4)), ((1, 3), (2, 5)), ((3, 4, 2), (3, 2, 5)),
]  # fmt: skip
"""Arrays and kernels, many of them larger than the array."""


def drawn(dtype: str, shape: Shape, most: int | None = None) -> Array:
    """Normal numbers, or integers up to `most` (the largest of their type), below 0 where the type goes there."""
    rng = np.random.default_rng(sum(shape))
    if dtype == "bool" or dtype in INTEGERS:
        high = 1 if dtype == "bool" else most or np.iinfo(dtype).max
        low = -high if dtype.startswith("int") else 0
        return rng.integers(
            low, high, shape, endpoint=True, dtype="int64" if most or dtype == "bool" else dtype
        ).astype(dtype)
    y: Array = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return y.astype(dtype) if dtype.startswith("complex") else y.real.astype(dtype)


def origins(kernel: Shape) -> Iterator[Shape]:
    """Every origin that ndimage takes; in more dimensions than one, those at the corners."""
    if len(kernel) == 1:
        return itertools.product(range(-(kernel[0] // 2), (kernel[0] - 1) // 2 + 1))
    return itertools.product(*({-(k // 2), (k - 1) // 2} for k in kernel))


def assert_gives(served: Served, case: Convolution, expected: Array) -> None:
    """SciPy's array, in SciPy's type."""
    y, answer = case.run(served)
    assert y.dtype == expected.dtype
    assert_agrees(answer.plan, y[np.newaxis, np.newaxis], expected[np.newaxis, np.newaxis], case.input, case.weight)


def assert_filters(
    served: Served, name: str, shapes: tuple[Shape, Shape], mode: str, origin: Sequence[int], dtype: str
) -> None:
    a, w = drawn(dtype, shapes[0], most=3), drawn(dtype, shapes[1], most=3)
    cval = 1 if dtype == "bool" else 3
    expected = getattr(ndimage, name)(a, w, mode=mode, cval=cval, origin=origin)
    assert_gives(served, scipy_case.filtered(name, a, w, mode, cval, origin), expected)


@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS])
@pytest.mark.parametrize("mode", ["full", "same", "valid"])
@pytest.mark.parametrize("name", NAMES)
def test_signal_agrees_and_integers_wrap(served: Served, name: str, mode: str, dtype: str) -> None:
    for shapes in [*PAIRS, *(CROSSED if mode != "valid" else [])]:
        a, v = (drawn(dtype, shape) for shape in shapes)
        expected = getattr(signal, name)(a, v, mode, method="direct")
        assert_gives(served, getattr(scipy_case, name)(a, v, mode), expected)


@pytest.mark.parametrize("name", NAMES)
def test_signal_agrees_on_booleans(served: Served, name: str) -> None:
    a, v = drawn("bool", (9,)), drawn("bool", (3,))
    assert_gives(served, getattr(scipy_case, name)(a, v, "full"), getattr(signal, name)(a, v, "full", method="direct"))


@pytest.mark.parametrize("name", NAMES)
def test_valid_refuses_as_signal_does_where_neither_fits_inside_the_other(served: Served, name: str) -> None:
    for shapes in CROSSED:
        a, v = (drawn("float64", shape) for shape in shapes)
        with pytest.raises(ValueError, match="'valid' mode"):
            getattr(signal, name)(a, v, "valid")
        case = getattr(scipy_case, name)(a, v, "valid")
        assert_refused(served, case.input, case.weight, None, case.parameters)


@pytest.mark.parametrize("mode", scipy_case.MODES)
@pytest.mark.parametrize("name", NAMES)
def test_ndimage_agrees_with_every_origin(served: Served, name: str, mode: str) -> None:
    for shapes in SIZES:
        for origin in origins(shapes[1]):
            assert_filters(served, name, shapes, mode, origin, "float64")


@pytest.mark.parametrize("dtype", ["bool", *INTEGERS, *FLOATS])
@pytest.mark.parametrize("name", NAMES)
def test_ndimage_agrees_in_every_type(served: Served, name: str, dtype: str) -> None:
    for shapes, mode in itertools.product([((6,), (4,)), ((4, 5), (3, 2)), ((3, 2, 4), (2, 3, 3))], scipy_case.MODES):
        assert_filters(served, name, shapes, mode, (0,) * len(shapes[0]), dtype)
