"""What is more than a server takes: refused by figure, limit and setting, before anything is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import grpc
import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL, call, convolution, good_request, output, refused

from convolver.client import Client
from convolver.core.errors import LimitExceeded
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

LIMITS = {"--max-output-elements": 10_000, "--max-work": 100_000, "--max-request-bytes": 400_000}


@pytest.fixture(scope="module")
def limited(serve: Callable[..., RunningServer]) -> Iterator[RunningServer]:
    """A server that takes little."""
    running = serve("--backend=reference", "--max-message=1MiB", *(f"{flag}={value}" for flag, value in LIMITS.items()))
    yield running
    assert running.stop() == 0


class TooMuch(NamedTuple):
    """A request above one limit: its figure and its setting."""

    setting: str
    value: int
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]


TOO_MUCH = [
    TooMuch("--max-output-elements", 101 * 101, (1, 1, 101, 101), (1, 1, 1, 1)),
    TooMuch("--max-work", 50 * 50 * 49, (1, 1, 56, 56), (1, 1, 7, 7)),
    TooMuch("--max-request-bytes", 0, (1, 64, 60, 60), (1, 64, 1, 1)),
]


@pytest.mark.parametrize("method", ["Convolve", "Plan"])
@pytest.mark.parametrize("wanted", TOO_MUCH, ids=lambda wanted: wanted.setting)
def test_more_than_a_limit_names_figure_limit_and_setting(limited: RunningServer, wanted: TooMuch, method: str) -> None:
    header = convolution(wanted.input_shape, wanted.weight_shape)
    kind = pb.ConvolveRequest if method == "Convolve" else pb.PlanRequest
    with grpc.insecure_channel(limited.address) as channel:
        answer = refused(channel, kind(convolution=header).SerializeToString(), method)
        assert (answer.code, answer.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
        (violation,) = answer.quota.violations
        assert wanted.setting in violation.description
        assert str(LIMITS[wanted.setting]) in violation.description
        assert wanted.setting in answer.text
        assert str(wanted.value or "") in answer.text
        np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)


@pytest.mark.parametrize("wanted", TOO_MUCH, ids=lambda wanted: wanted.setting)
def test_the_sdk_raises_the_limit_as_the_server_raised_it(limited: RunningServer, wanted: TooMuch) -> None:
    with Client(limited.address) as client:
        with pytest.raises(LimitExceeded) as planned:
            client.plan(wanted.input_shape, wanted.weight_shape)
        image, kernel = np.zeros(wanted.input_shape, np.float32), np.zeros(wanted.weight_shape, np.float32)
        with pytest.raises(LimitExceeded) as run:
            client.convolve(image, kernel)
    assert (planned.value.setting, planned.value.limit) == (wanted.setting, LIMITS[wanted.setting])
    assert planned.value.value > planned.value.limit
    assert vars(planned.value) == vars(run.value)


def test_a_message_above_the_limit_is_refused(limited: RunningServer) -> None:
    with grpc.insecure_channel(limited.address) as channel:
        answer = refused(channel, bytes(2**20 + 1))
        assert answer.code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "(1048577 vs. 1048576)" in answer.text
        np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)


def test_an_answer_above_the_message_limit_is_refused_before_it_is_computed(
    serve: Callable[..., RunningServer],
) -> None:
    running = serve("--backend=reference", "--max-message=64KiB")
    with Client(running.address) as client:
        with pytest.raises(LimitExceeded) as caught:
            client.conv_transpose2d(IMAGE, KERNEL, stride=100)
        assert (caught.value.limit, caught.value.value) == (2**16, 4 * 202 * 202)
        assert caught.value.setting == "--max-message"
        with pytest.raises(LimitExceeded, match="the answer's message would be"):  # the bytes beside the data count too
            client.conv1d(np.zeros((1, 1, 128), np.float32), np.zeros((128, 1, 1), np.float32))
        np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
    assert running.stop() == 0


@pytest.mark.parametrize("kind", [pb.ConvolveRequest, pb.PlanRequest], ids=["Convolve", "Plan"])
def test_a_header_of_megabytes_is_refused_before_it_is_parsed(
    client: Client, server: RunningServer, kind: type[pb.ConvolveRequest | pb.PlanRequest]
) -> None:
    request = kind(convolution=convolution((1, 1, 4, 4), (1, 1, 2, 2)))
    request.convolution.layers.extend([request.convolution.layers[0]] * 100_000)
    with grpc.insecure_channel(server.address) as channel:
        answer = refused(channel, request.SerializeToString(), kind.DESCRIPTOR.name.removesuffix("Request"))
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert f"at most {2**20} are read" in answer.text
    np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
