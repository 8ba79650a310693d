"""Shapes and parameters at the edge of what is allowed, which have crashed a library or taken all memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import call, convolution, output, refused, request

from convolver.client import Client
from convolver.core.errors import Unsupported
from convolver.v1 import convolution_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RunningServer


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


HUGE = (2**31 - 1,) * 3


@pytest.mark.parametrize("batch", [1, 0], ids=["", "of an empty batch"])
@pytest.mark.parametrize("method", ["Convolve", "Plan"])
def test_shapes_whose_product_overflows_are_refused(channel: grpc.Channel, method: str, batch: int) -> None:
    header = convolution((batch, 1, *HUGE), (1, 1, 1, 1, 1))
    kind = pb.ConvolveRequest if method == "Convolve" else pb.PlanRequest
    answer = refused(channel, kind(convolution=header).SerializeToString(), method)
    assert answer.code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}, answer.text


def test_an_empty_batch_of_huge_pictures_takes_no_memory(channel: grpc.Channel, backend: str) -> None:
    header = convolution((0, 2, 2**31 - 1, 7), (1, 2, 3, 2))
    parameters = header.layers[0].definition.parameters
    parameters.explicit_padding.begin.extend([1, 1])
    parameters.explicit_padding.end.extend([1, 1])
    parameters.padding_mode = convolution_pb2.PADDING_MODE_REPLICATE
    header.execution.backend = backend
    answer = call(channel, request(header, np.ones(12, np.float32), b""))
    assert output(answer).shape == (0, 1, 2**31 - 1, 8)


def test_a_stride_that_ends_torchs_process_goes_to_the_reference(client: Client) -> None:
    answer = client.run(np.ones((2, 1, 6), np.float32), np.ones((1, 1, 1), np.float32), stride=65536, transposed=True)
    assert (answer.output.shape, answer.output.sum()) == ((2, 1, 327_681), 12)
    assert answer.plan.backend == "reference"


def test_torch_alone_refuses_direct_sums_of_it_and_lives(client: Client) -> None:
    with pytest.raises(Unsupported, match="transposed strides up to 32767"):
        client.plan((2, 1, 6), (1, 1, 1), stride=65536, transposed=True, backend="torch", algorithm="direct")


def test_and_does_it_by_transforms(client: Client) -> None:
    x, w = np.arange(6, dtype=np.float32).reshape(1, 1, 6), np.ones((1, 1, 1), np.float32)
    answer = client.run(x, w, stride=65536, transposed=True, backend="torch")
    assert answer.plan.algorithm == "fft"
    np.testing.assert_allclose(answer.output[0, 0, ::65536], range(6), atol=1e-5)


@pytest.mark.parametrize("padding", ["full", [(1, 0)]])
def test_of_an_empty_dimension_the_padding_is_left(client: Client, backend: str, padding: Any) -> None:  # noqa: ANN401 - its forms
    weight, bias = np.ones((1, 1, 2 if padding == "full" else 1), np.float32), np.full(1, 7, np.float32)
    output = client.conv1d(np.zeros((2, 1, 0), np.float32), weight, bias, padding=padding, backend=backend)
    assert output.tolist() == [[[7]], [[7]]]
