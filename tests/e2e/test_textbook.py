"""The numbers that convolutions are taught with, through the service, on each back end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convolver.client import Client

    Array = NDArray[np.float32]


def plane(rows: Any) -> Array:  # noqa: ANN401 - nested lists
    """(1, 1, H, W)."""
    return np.array(rows, np.float32)[np.newaxis, np.newaxis]


FIVE = [[1, 2, 0, 3, 1], [0, 1, 2, 3, 1], [1, 2, 1, 0, 0], [5, 2, 3, 1, 1], [2, 1, 0, 1, 1]]
THREE = [[1, 2, 1], [0, 1, 0], [2, 1, 0]]
COUNTED = np.arange(9).reshape(3, 3).tolist()
LARGE = np.arange(1, 26).reshape(5, 5).tolist()

# The picture of "Dive into Deep Learning", 7.2: white, black in the middle.
EDGES = np.ones((6, 8))
EDGES[:, 2:6] = 0
EDGES_FOUND = np.zeros((6, 7))
EDGES_FOUND[:, 1], EDGES_FOUND[:, 5] = 1, -1

VALUES: dict[str, tuple[Any, Any, dict[str, Any], Any]] = {
    "valid": (FIVE, THREE, {}, [[10, 12, 12], [18, 16, 16], [13, 9, 3]]),
    "stride 2": (FIVE, THREE, {"stride": 2}, [[10, 12], [13, 3]]),
    "padding 1": (
        FIVE,
        THREE,
        {"padding": 1},
        [[1, 3, 4, 10, 8], [5, 10, 12, 12, 6], [7, 18, 16, 16, 8], [11, 13, 9, 3, 4], [14, 13, 9, 7, 4]],
    ),
    "0 to 8": (COUNTED, [[0, 1], [2, 3]], {}, [[19, 25], [37, 43]]),
    # An article prints -18 and -30 below; it is wrong: every row differs by the same 2 between its columns.
    "a ramp": (LARGE, [[1, 0, -1]] * 3, {}, [[-6] * 3] * 3),
    "two edges": (EDGES.tolist(), [[1, -1]], {}, EDGES_FOUND.tolist()),
}

SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "4/3": ((1, 1, 4), (1, 1, 3), {}, (1, 1, 2)),
    "5/3 pad 1": ((1, 1, 5), (1, 1, 3), {"padding": 1}, (1, 1, 5)),
    "5/3 stride 2": ((1, 1, 5), (1, 1, 3), {"stride": 2}, (1, 1, 2)),
    "6/3 stride 2 pad 1": ((1, 1, 6), (1, 1, 3), {"stride": 2, "padding": 1}, (1, 1, 3)),
    "(3,4)/(2,2)": ((1, 1, 3, 4), (1, 1, 2, 2), {}, (1, 1, 2, 3)),
    "(3,3)/(2,2) pad 1 stride (3,2)": ((1, 1, 3, 3), (1, 1, 2, 2), {"padding": 1, "stride": (3, 2)}, (1, 1, 2, 2)),
    "5x5 transposed with 2x2": ((1, 1, 5, 5), (1, 1, 2, 2), {"transposed": True}, (1, 1, 6, 6)),
    "5x5, 2x2, stride 2, padding 2, dilation 2": (
        (1, 1, 5, 5),
        (1, 1, 2, 2),
        {"stride": 2, "padding": 2, "dilation": 2},
        (1, 1, 4, 4),
    ),
    "4 channels in 2 groups to 2": ((1, 4, 5, 5), (2, 2, 3, 3), {"groups": 2}, (1, 2, 3, 3)),
}


@pytest.mark.parametrize("case", VALUES.values(), ids=VALUES.keys())
def test_the_service_gives_the_textbooks_values(client: Client, backend: str, case: Any) -> None:  # noqa: ANN401
    image, kernel, parameters, expected = case
    answer = client.run(plane(image), plane(kernel), backend=backend, **parameters)
    np.testing.assert_array_equal(answer.output, plane(expected))
    assert answer.plan.backend.startswith(backend)


@pytest.mark.parametrize("case", VALUES.values(), ids=VALUES.keys())
def test_the_plan_gives_the_textbooks_shapes(client: Client, backend: str, case: Any) -> None:  # noqa: ANN401
    image, kernel, parameters, expected = case
    plan = client.plan(plane(image).shape, plane(kernel).shape, backend=backend, **parameters)
    assert plan.output_shape == plane(expected).shape
    assert plan.macs == plane(expected).size * plane(kernel).size


@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES.keys())
def test_plan_and_result_have_the_textbooks_size(client: Client, backend: str, case: Any) -> None:  # noqa: ANN401
    input_shape, weight_shape, parameters, expected = case
    plan = client.plan(input_shape, weight_shape, backend=backend, **parameters)
    output = client.convolve(np.ones(input_shape), np.ones(weight_shape), backend=backend, **parameters)
    assert plan.output_shape == output.shape == expected


def test_groups_meet_their_own_channels_alone(client: Client, backend: str) -> None:
    image = np.zeros((1, 4, 3, 3), np.float32)
    image[0, 2:] = 1
    output = client.conv2d(image, np.ones((2, 2, 3, 3), np.float32), groups=2, backend=backend)
    np.testing.assert_array_equal(output[0, :, 0, 0], [0, 18])


def test_a_transposed_convolution_spreads_each_element(client: Client, backend: str) -> None:
    output = client.conv_transpose2d(plane([[0, 1], [2, 3]]), plane([[0, 1], [2, 3]]), backend=backend)
    np.testing.assert_array_equal(output, plane([[0, 0, 1], [0, 4, 6], [4, 12, 9]]))  # D2L 14.10
