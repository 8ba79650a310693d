"""The arguments of convolver.client.scipy.ndimage: axes, outputs, and what is refused, as SciPy has them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.ndimage  # type: ignore[import-untyped]  # SciPy has no hints of its own
from tests.client.scipy_comparison import BACKENDS, Case, CountingClient, assert_equal, counting_client, values

from convolver.client.scipy import ndimage
from convolver.core.errors import Unsupported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.client.scipy_comparison import Array
    from tests.conftest import RunningServer

FUNCTIONS = ["convolve", "correlate"]


@pytest.fixture(scope="module", params=BACKENDS)
def counting(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[CountingClient]:
    yield from counting_client(server.address, request.param)


@pytest.mark.parametrize("axes", [0, (-1,), (1,), (0, 2), (2, 0), [1, 2], ()])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_axes_that_are_not_filtered_are_left_alone(counting: CountingClient, function: str, axes: Any) -> None:  # noqa: ANN401 - SciPy's own argument
    count = 1 if isinstance(axes, int) else len(axes)
    more = {"axes": axes, "origin": [-1, 0][:count], "mode": "wrap"}
    case = Case(function, values((3, 5, 4), "int32", 1, 99), values((3, 2)[:count], "int8", 2), more)
    assert_equal(case.ours(counting), case.theirs())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_order_of_axes_does_not_turn_the_origins_where_all_are_filtered(
    counting: CountingClient, function: str
) -> None:
    more = {"axes": (1, 0), "origin": [1, 0]}
    case = Case(function, values((4, 5), "int32", 1, 99), values((3, 2), "int8", 2), more)
    assert_equal(case.ours(counting), case.theirs())


@pytest.mark.parametrize("image", [(), (2, 3, 4, 5), (2, 1, 3, 4, 2)])
def test_images_of_other_ranks_are_taken(counting: CountingClient, image: tuple[int, ...]) -> None:
    kernel = (1, 3, 1, 2, 2)[: len(image)]
    case = Case("convolve", np.asarray(values(image, "uint16", 1, 99)), values(kernel, "float64", 2), {})
    assert_equal(case.ours(counting), case.theirs())


def test_kernels_longer_than_1_in_four_dimensions_are_unsupported(counting: CountingClient) -> None:
    with pytest.raises(Unsupported, match=r"kernel \(2, 2, 2, 2\) is longer than 1 in 4 dimensions"):
        ndimage.convolve(np.ones((3, 3, 3, 3)), np.ones((2, 2, 2, 2)), client=counting)


@pytest.mark.parametrize("image", [np.ones((0, 3)), np.ones((2, 0), np.float16)])
def test_an_empty_image_gives_an_empty_one(counting: CountingClient, image: Array) -> None:
    case = Case("correlate", image, np.ones((3, 2)), {})
    assert_equal(case.ours(counting), case.theirs())


def test_an_output_array_is_written_to_and_returned(counting: CountingClient) -> None:
    image, target = values((6, 5), "uint8", 1), np.empty((10, 6), np.int16).T[:, ::2]
    result = ndimage.convolve(image, [[1, 2, 3]], target, client=counting)
    assert result is target
    np.testing.assert_array_equal(target, scipy.ndimage.convolve(image, [[1, 2, 3]], np.int16))


def test_the_image_itself_may_be_written_to(counting: CountingClient) -> None:
    image = values((6, 5), "float64", 1)
    expected = scipy.ndimage.convolve(image, np.ones((3, 3)))
    np.testing.assert_allclose(ndimage.convolve(image, np.ones((3, 3)), image, client=counting), expected, rtol=1e-14)
    np.testing.assert_allclose(image, expected, rtol=1e-14)


@pytest.mark.parametrize("output", [None, np.dtype(">i4"), "i2", bool, int, "complex64"])
def test_the_type_of_the_output_is_scipys(counting: CountingClient, output: Any) -> None:  # noqa: ANN401 - SciPy's own argument
    image = np.ones(3, np.complex64 if output == "complex64" else ">u2")
    result = ndimage.convolve(image, [1, 2], output, client=counting)
    assert result.dtype == scipy.ndimage.convolve(image, [1, 2], output).dtype


def test_a_real_output_of_complex_sums_is_promoted_with_scipys_warning(counting: CountingClient) -> None:
    with pytest.warns(UserWarning, match="promoting specified output dtype to complex") as said:
        result = ndimage.convolve(np.ones(3), [1, 1j], np.float32, client=counting)
    assert result.dtype == np.complex64
    assert said[0].filename == __file__


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("image", "weights", "more"),
    [
        (np.ones(3), [1, 1], {"mode": "bad"}),
        (np.ones(3), [1, 1], {"mode": ["reflect"]}),
        (np.ones(3), [1, 1], {"mode": 3}),
        (np.ones(3), [1, 1, 1], {"origin": 2}),
        (np.ones(3), [1, 1, 1], {"origin": -2}),
        (np.ones(3), [1, 1], {"origin": [0, 0]}),
        (np.ones(3), [1, 1], {"origin": 0.0}),
        (np.ones((3, 3)), [1, 1], {}),
        (np.ones(3), [[1, 1]], {}),
        (np.ones(3), [], {}),
        (np.ones((3, 3)), np.ones((2, 0)), {}),
        (np.ones((3, 3)), [[1, 1]], {"axes": 0}),
        (np.ones((3, 3)), [1, 1], {"axes": (2,)}),
        (np.ones((3, 3)), [[1, 1]], {"axes": (1, -1)}),
        (np.ones((3, 3)), [1, 1], {"axes": 0.5}),
        (np.ones((3, 3)), [1, 1], {"axes": "0"}),
        (np.ones(3), [1, 1], {"cval": 1j}),
        (np.ones(3), [1, 1], {"cval": None}),
        (np.ones(3), [1, 1j], {"cval": 1j}),
        (np.ones(3), [1, 1], {"output": np.zeros(4)}),
        (np.ones(3), [1, 1], {"output": "bool"}),
        (np.ones(3), [1, 1], {"output": "f2"}),
        (np.ones(3), [1, 1], {"output": complex}),
        (np.ones(3), [1, 1], {"output": "no type"}),
        (np.ones(3), [1, 1], {"output": np.broadcast_to(0.0, 3)}),
        (np.ones(3, complex), [1, 1], {"output": "f8"}),
        (np.ones(3, complex), [1, 1], {"output": np.zeros(3)}),
        (np.ones(3, np.float16), [1, 1], {}),
        (np.ones(3, np.float16), [1, 1j], {}),
        (np.ones(3, np.longdouble), [1, 1], {}),
        (np.ones(3, object), [1, 1], {}),
        (np.ones(3), ["one"], {}),
    ],
)
def test_what_scipy_refuses_is_refused_in_its_words(
    counting: CountingClient,
    function: str,
    image: Array,
    weights: Any,  # noqa: ANN401 - SciPy's own argument
    more: dict[str, Any],
) -> None:
    case = Case(function, image, weights, more)
    with pytest.raises((RuntimeError, TypeError, ValueError)) as refused:
        case.theirs()
    words = "." if refused.type is TypeError else re.escape(str(refused.value))
    with pytest.raises(refused.type, match=words):
        case.ours(counting)
