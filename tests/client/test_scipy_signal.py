"""convolver.client.scipy.signal against SciPy itself, through a real server, on both back ends."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.signal  # type: ignore[import-untyped]  # SciPy has no hints of its own
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.scipy_comparison import (
    BACKENDS,
    COMPLEX,
    FLOATS,
    WHOLE,
    CountingClient,
    counting_client,
    shapes,
    tolerance,
    values,
)

from convolver.client.scipy import signal
from convolver.core.errors import InvalidConvolution, Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.scipy_comparison import Array
    from tests.conftest import RunningServer

FUNCTIONS = ["convolve", "correlate"]
MODES = ["full", "same", "valid"]
METHODS = ["auto", "direct"]


@pytest.fixture(scope="module", params=BACKENDS)
def counting(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[CountingClient]:
    yield from counting_client(server.address, request.param)


@st.composite
def pairs(
    draw: st.DrawFn, dtypes: list[str], longest: int = 6, ndims: tuple[int, int] = (1, 3)
) -> tuple[Array, Array, str]:
    """Two arrays, of types of their own, and a mode that their shapes allow."""
    ndim, mode = draw(st.integers(*ndims)), draw(st.sampled_from(MODES))
    first, second = draw(shapes(ndim, longest)), draw(shapes(ndim, longest))
    if mode == "valid":
        first, second = tuple(map(max, first, second)), tuple(map(min, first, second))
    arrays = [values(shape, draw(st.sampled_from(dtypes)), draw(st.integers(0, 999))) for shape in (first, second)]
    one, other = arrays if draw(st.booleans()) else arrays[::-1]
    return one, other, mode


def ours(function: str, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - SciPy's own
    return getattr(signal, function)(*arguments, **more)


def theirs(function: str, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - SciPy's own
    return getattr(scipy.signal, function)(*arguments, **more)


def assert_close(function: str, first: Array, second: Array, mode: str, result: Array) -> None:
    """Within the tolerance of SciPy's direct sums in extended precision, of arrays that are promoted first."""
    dtype = np.result_type(first, second)
    wide = np.clongdouble if dtype.kind == "c" else np.longdouble
    exact = [array.astype(dtype).astype(wide) for array in (first, second)]
    reference = theirs(function, *exact, mode, "direct")
    scale = theirs(function, *map(np.abs, exact), mode, "direct")
    assert (result.dtype, result.shape) == (dtype, reference.shape)
    sums = "float64" if dtype in ("float64", "complex128") else "float32"
    assert (np.abs(result - reference) <= tolerance(reference, scale, min(first.size, second.size), dtype, sums)).all()


@pytest.mark.parametrize("function", FUNCTIONS)
@given(case=pairs(WHOLE), method=st.sampled_from(METHODS))
def test_integers_of_any_two_types_are_what_scipy_gives_wrapped_around(
    counting: CountingClient, function: str, case: tuple[Array, Array, str], method: str
) -> None:
    first, second, mode = case
    result = ours(function, first, second, mode, method, client=counting)
    if np.result_type(first, second).kind == "f":  # int64 with uint64
        assert_close(function, first, second, mode, result)
    else:
        expected = theirs(function, first, second, mode, "direct")
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("function", FUNCTIONS)
@given(case=pairs([*FLOATS, *COMPLEX, "int8", "uint32"]), method=st.sampled_from(METHODS))
def test_floats_and_complex_numbers_are_within_the_tolerance_of_scipy(
    counting: CountingClient, function: str, case: tuple[Array, Array, str], method: str
) -> None:
    first, second, mode = case
    result = ours(function, first, second, mode, method, client=counting)
    if np.result_type(first, second).kind in "iu":
        np.testing.assert_array_equal(result, theirs(function, first, second, mode, "direct"))
    else:
        assert_close(function, first, second, mode, result)


@pytest.mark.parametrize("function", FUNCTIONS)
@given(case=pairs(["float16"], ndims=(1, 1)))
def test_half_precision_is_summed_in_single(
    counting: CountingClient, function: str, case: tuple[Array, Array, str]
) -> None:
    first, second, mode = case
    assert_close(function, first, second, mode, ours(function, first, second, mode, client=counting))


@pytest.mark.parametrize("function", FUNCTIONS)
@given(case=pairs(["bool"], ndims=(1, 1)))
def test_booleans_say_whether_any_pair_was_true(
    counting: CountingClient, function: str, case: tuple[Array, Array, str]
) -> None:
    first, second, mode = case
    result = ours(function, first, second, mode, client=counting)
    counts = theirs(function, first.astype(int), second.astype(int), mode, "direct")
    assert result.dtype == np.bool_
    np.testing.assert_array_equal(result, counts != 0)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("long", "short"), [(257, 31), (256, 30)])
def test_signals_of_some_length_agree_whichever_comes_first(
    counting: CountingClient, function: str, mode: str, long: int, short: int
) -> None:
    signals = values((long,), "float64", 1), values((short,), "float64", 2)
    for first, second in (signals, signals[::-1]):
        assert_close(function, first, second, mode, ours(function, first, second, mode, client=counting))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("first", "second"), [(3, 4), (2.5, 2), (1 + 2j, 3 - 1j), (np.int8(100), np.int8(100)), (True, True)]
)
def test_two_scalars_give_their_product(counting: CountingClient, function: str, first: Any, second: Any) -> None:  # noqa: ANN401 - numbers of any type
    result = ours(function, first, second, client=counting)
    with np.errstate(over="ignore"):
        expected = theirs(function, first, second)
    assert type(result) is type(expected)
    assert result == expected


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("mode", MODES)
def test_dimensions_in_which_the_kernel_has_length_1_do_not_count(
    counting: CountingClient, function: str, mode: str
) -> None:
    first, second = values((3, 2, 5, 4, 2), "int64", 3, 99), values((1, 2, 1, 3, 2), "int64", 4, 99)
    expected = theirs(function, first, second, mode, "direct")
    np.testing.assert_array_equal(ours(function, first, second, mode, client=counting), expected)


def test_more_than_three_dimensions_are_unsupported(counting: CountingClient) -> None:
    with pytest.raises(Unsupported, match=r"kernel \(2, 2, 2, 2\) is longer than 1 in 4 dimensions"):
        signal.convolve(np.ones((3, 3, 3, 3)), np.ones((2, 2, 2, 2)), client=counting)


def test_each_call_is_one_call_to_the_service(counting: CountingClient) -> None:
    before = counting.calls
    signal.correlate(np.ones(5) + 1j, np.ones(9), "same", client=counting)
    assert counting.calls == before + 1


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("first", "second"),
    [((0,), (3,)), ((3,), (0,)), ((0,), (0,)), ((0, 3), (2, 2)), ((2, 2), (0, 3)), ((2, 0), (2, 2)), ((0, 3), (0, 3))],
)
def test_empty_arrays_give_what_scipys_direct_method_gives(
    counting: CountingClient, function: str, mode: str, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
    empty, other = np.ones(first, np.float32), np.ones(second, np.int16)
    try:
        expected = theirs(function, empty, other, mode, "direct")
    except ValueError:
        with pytest.raises(ValueError, match=r"empty|valid"):
            ours(function, empty, other, mode, client=counting)
    else:
        result = ours(function, empty, other, mode, client=counting)
        assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("arguments"),
    [
        (np.ones(3), np.ones((3, 3))),
        (np.ones(3), 2.0),
        (np.ones((2, 3)), np.ones((3, 2)), "valid"),
        (np.ones((2, 3)), np.ones((3, 2)), "valid", "direct"),
        (np.ones(3), np.ones(2), "spam", "direct"),
        (np.ones(3), np.ones(2), 2, "direct"),
        (np.ones(3), np.ones(2), "full", "eggs"),
    ],
)
def test_what_scipy_refuses_is_refused_in_its_words(
    counting: CountingClient, function: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(ValueError, match=r".") as refused:
        theirs(function, *arguments)
    with pytest.raises(ValueError, match=re.escape(str(refused.value))):
        ours(function, *arguments, client=counting)


def test_types_that_the_service_lacks_are_refused_by_name(counting: CountingClient) -> None:
    with pytest.raises(InvalidConvolution, match="has dtype object"):
        signal.convolve(np.array([1, 2], object), [1], client=counting)


def test_nan_and_infinity_reach_as_far_as_the_kernel(counting: CountingClient) -> None:
    volume, kernel = np.arange(20.0), np.array([1.0, -2.0, 3.0])
    volume[4], volume[12] = np.nan, np.inf
    expected = scipy.signal.convolve(volume, kernel, method="direct")
    np.testing.assert_array_equal(signal.convolve(volume, kernel, client=counting), expected)


def test_arrays_of_the_other_byte_order_and_lists_are_taken(counting: CountingClient) -> None:
    result = signal.correlate(np.array([1, 2, 3], ">i4"), [1, 2], "valid", client=counting)
    assert result.tolist() == [5, 8]
    assert result.dtype == np.int64


@settings(max_examples=30)
@given(case=pairs(["int8", "int32", "uint16", "int64", "bool"], ndims=(1, 2)), function=st.sampled_from(FUNCTIONS))
def test_the_fft_of_integers_is_rounded(
    counting: CountingClient, function: str, case: tuple[Array, Array, str]
) -> None:
    first, second, mode = case
    small = [array % 50 if array.dtype.kind != "b" else array for array in (first, second)]
    expected = theirs(function, *(array.astype(np.int64) for array in small), mode, "direct")
    result = ours(function, *small, mode, "fft", client=counting)
    np.testing.assert_array_equal(result, expected.astype(np.result_type(*small)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_the_fft_of_floats_is_within_its_own_tolerance(counting: CountingClient, dtype: str) -> None:
    volume, kernel = values((40, 30), dtype, 5), values((9, 8), dtype, 6)
    result = signal.convolve(volume, kernel, "same", "fft", client=counting)
    wide = np.clongdouble if dtype == "complex128" else np.longdouble
    expected = scipy.signal.convolve(volume.astype(wide), kernel.astype(wide), "same", "direct")
    scale = scipy.signal.convolve(np.abs(volume.astype(wide)), np.abs(kernel.astype(wide)), "same", "direct")
    bound = 4 * tolerance(expected, np.full_like(scale, scale.max()), kernel.size, result.dtype, dtype)
    assert (np.abs(result - expected) <= bound).all()
