"""What a suite says must fail: refused by the SDK before it is sent, and by the server when it is sent all the same."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray
from tests import contract
from tests.conformance.served import Served

from convolver.core import request_codec, tensors
from convolver.core.errors import InvalidConvolution
from convolver.v1 import convolution_pb2

Array = NDArray[Any]


def assert_refused(served: Served, input: Array, weight: Array, bias: Array | None, parameters: Any) -> None:  # noqa: ANN401 - Parameters, right or wrong
    """The SDK raises InvalidConvolution with a field, and the server answers the same request in the same words; one
    that no message can say (an unknown word for padding) never leaves the SDK.
    """
    arrays = [weight, *([] if bias is None else [bias]), input]
    with pytest.raises(InvalidConvolution) as refusal:
        served.client.run(input, weight, bias, **parameters)
    assert refusal.value.field
    header = _written(input, weight, bias, parameters)
    if header is None:
        return
    message = contract.request(header, *(np.ascontiguousarray(array) for array in arrays))
    with grpc.insecure_channel(served.client.address) as channel:
        answer = contract.refused(channel, message)
    assert answer.code == grpc.StatusCode.INVALID_ARGUMENT
    assert (answer.field, answer.text) == (refusal.value.field, str(refusal.value))


def _written(
    input: Array,
    weight: Array,
    bias: Array | None,
    parameters: Any,  # noqa: ANN401 - Parameters, right or wrong
) -> convolution_pb2.Convolution | None:
    """The message that says this, as far as a message can."""
    last = None if bias is None else tensors.header(bias, "bias")
    try:
        return request_codec.single_to_proto(
            tensors.header(input, "input"), tensors.header(weight, "weight"), last, parameters
        )
    except InvalidConvolution:
        return None
