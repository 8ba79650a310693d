"""convolver.client.scipy.ndimage against SciPy itself, through a real server, on both back ends."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.scipy_comparison import (
    BACKENDS,
    COMPLEX,
    FLOATS,
    WHOLE,
    Case,
    CountingClient,
    assert_equal,
    counting_client,
    shapes,
    tolerance,
    values,
)

from convolver.client.scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.scipy_comparison import Array
    from tests.conftest import RunningServer

FUNCTIONS = ["convolve", "correlate"]
MODES = ["reflect", "grid-mirror", "mirror", "nearest", "wrap", "grid-wrap", "constant", "grid-constant"]


@pytest.fixture(scope="module", params=BACKENDS)
def counting(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[CountingClient]:
    yield from counting_client(server.address, request.param)


@st.composite
def cases(draw: st.DrawFn, inputs: list[str], weights: list[str]) -> Case:
    """An image, a kernel that may be larger, one of the modes, and an origin among those that there are."""
    function, ndim, seed = draw(st.sampled_from(FUNCTIONS)), draw(st.integers(1, 3)), draw(st.integers(0, 999))
    kernel = draw(shapes(ndim, 9 if ndim == 1 else 5))
    image = values(draw(shapes(ndim, 7)), draw(st.sampled_from(inputs)), seed, 2**13)
    taps = values(kernel, draw(st.sampled_from(weights)), seed + 1, 9)
    begins = [draw(st.integers(0, size - 1)) for size in kernel]
    origins = [begin - size // 2 for begin, size in zip(begins, kernel, strict=True)]
    if function == "convolve":
        origins = [-origin - (size % 2 == 0) for origin, size in zip(origins, kernel, strict=True)]
    cval = draw(st.sampled_from([0.0, 1.0, -3, 0.7]))
    more = {"mode": draw(st.sampled_from(MODES)), "cval": cval, "origin": origins}
    return Case(function, image, taps, more)


def assert_close(case: Case, result: Array, expected: Array) -> None:
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    if result.dtype == np.complex64:
        expected = case.promoted()
    bound = tolerance(expected, case.scale(), case.weights.size, result.dtype, "float64")
    assert (np.abs(result - expected) <= bound).all()


@given(case=cases(["bool", *WHOLE], ["bool", *WHOLE]))
def test_integers_are_what_scipy_gives(counting: CountingClient, case: Case) -> None:
    assert_equal(case.ours(counting), case.theirs())


@given(case=cases(["bool", *WHOLE], FLOATS))
def test_integers_under_fractional_weights_are_cut_off_as_scipy_does(counting: CountingClient, case: Case) -> None:
    assert_equal(case.ours(counting), case.theirs())


@given(case=cases(["bool", *WHOLE, *FLOATS], [*FLOATS, "int8"]), output=st.sampled_from(["bool", *WHOLE]))
def test_an_integer_output_of_any_type_is_what_scipy_gives(counting: CountingClient, case: Case, output: str) -> None:
    assert_equal(case.ours(counting, output=np.dtype(output)), case.theirs(output=np.dtype(output)))


@given(case=cases(FLOATS, [*FLOATS, *WHOLE, "bool", "float16"]))
def test_floats_are_within_the_tolerance_of_scipy(counting: CountingClient, case: Case) -> None:
    assert_close(case, case.ours(counting), case.theirs())


@given(case=cases(["bool", *WHOLE, *FLOATS], [*FLOATS, *WHOLE]), output=st.sampled_from([np.float32, "f8", float]))
def test_a_float_output_is_within_the_tolerance_of_scipy(counting: CountingClient, case: Case, output: object) -> None:
    assert_close(case, case.ours(counting, output=output), case.theirs(output=output))


@given(case=cases(COMPLEX, [*COMPLEX, "float32", "int16"]))
def test_complex_images_are_within_the_tolerance_of_scipy(counting: CountingClient, case: Case) -> None:
    assert_close(case, case.ours(counting), case.theirs())


@given(case=cases(["bool", "int32", *FLOATS], COMPLEX))
def test_complex_weights_are_within_the_tolerance_of_scipy(counting: CountingClient, case: Case) -> None:
    assert_close(case, case.ours(counting), case.theirs())


@given(case=cases(["float32", "float64", "complex128"], ["int8", "float64", "complex64"]), data=st.data())
def test_nan_and_infinity_do_not_spread_through_weights_of_0(
    counting: CountingClient, case: Case, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    case.image[rng.random(case.image.shape) < 0.15] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    case.image[rng.random(case.image.shape) < 0.1] = -np.inf
    case.weights[rng.random(case.weights.shape) < 0.4] = 0
    case.more["cval"] = data.draw(st.sampled_from([0.0, 2.5, np.nan, np.inf]))
    with np.errstate(invalid="ignore"):
        result, expected = case.ours(counting), case.theirs()
    for ours, theirs in ((result.real, expected.real), (result.imag, expected.imag)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-2)


def test_a_complex_constant_surrounds_a_complex_image(counting: CountingClient) -> None:
    more = {"mode": "constant", "cval": 2 - 3j, "origin": 0}
    case = Case("correlate", values((4, 5), "complex128", 1), values((3, 2), "complex128", 2), more)
    assert_close(case, case.ours(counting), case.theirs())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_picture_of_bytes_under_a_blur_is_equal_to_the_last_bit(counting: CountingClient, function: str) -> None:
    case = Case(function, values((120, 90), "uint8", 1), np.full((9, 9), 1 / 81), {"mode": "mirror"})
    assert_equal(case.ours(counting), case.theirs())


@pytest.mark.skipif(platform.machine() != "x86_64", reason="C leaves these casts to the processor")
@pytest.mark.parametrize("output", ["bool", *WHOLE])
def test_what_no_integer_holds_becomes_what_scipy_gives(counting: CountingClient, output: str) -> None:
    powers = 2.0 ** np.array([7, 8, 15, 16, 31, 32, 40, 53, 62, 63, 64, 70])
    image = np.concatenate([powers, -powers, powers + 3, 1 - powers, powers * 1.5, [np.nan, np.inf, -np.inf, -0.9]])
    case = Case("correlate", image, np.array([1.0]), {"output": np.dtype(output)})
    assert_equal(case.ours(counting), case.theirs())


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
@pytest.mark.parametrize("weights", [[3, -2, 1], [1, 1], [2.0**40], [0.5]])
def test_64_bits_pass_through_doubles_as_in_scipy(counting: CountingClient, dtype: str, weights: list[float]) -> None:
    case = Case("correlate", values((9,), dtype, 3) // 8, np.array(weights), {"output": np.int64})
    assert_equal(case.ours(counting), case.theirs())


@pytest.mark.parametrize("weights", [[-1], [-(2**8)], [-(2**24)]])
def test_a_sum_just_beyond_a_type_finds_a_wider_one(counting: CountingClient, weights: list[int]) -> None:
    case = Case("correlate", np.array([-128, 127], np.int8), np.array(weights), {"output": np.int64})
    assert_equal(case.ours(counting), case.theirs())


def test_weights_of_an_epsilon_or_less_and_nan_do_not_count(counting: CountingClient) -> None:
    case = Case("correlate", np.array([1.0, np.inf, 4.0]), np.array([np.nan, 1.0, 2.0**-52]), {})
    assert_equal(case.ours(counting), case.theirs())


@pytest.mark.parametrize("dtype", ["uint8", "float32", "complex64"])
def test_each_call_is_one_call_to_the_service(counting: CountingClient, dtype: str) -> None:
    before = counting.calls
    ndimage.correlate(np.ones((4, 4), dtype), [[0.5, 0.25]], mode="constant", cval=np.inf, client=counting)
    assert counting.calls == before + 1


@settings(max_examples=50)
@given(case=cases(["uint8", "int32"], ["int8", "uint8"]))
def test_integers_travel_as_integers(counting: CountingClient, case: Case) -> None:
    seen: list[np.dtype[Any]] = []

    class Watching(CountingClient):
        def run(self, input: Any, *arguments: Any, **parameters: Any) -> Any:  # noqa: ANN401 - passed on
            seen.append(input.dtype)
            return super().run(input, *arguments, **parameters)

    with Watching(counting.address, counting.backend) as watching:
        case.ours(watching)
    fractional = case.more["cval"] == 0.7 and case.more["mode"].endswith("constant")
    assert seen[0].kind in ("f" if fractional else "iu")
