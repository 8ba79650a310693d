"""What bad requests get, in the same words from Convolve, from Plan and from the SDK; and the server serves on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
import pytest
from tests.contract import (
    ANSWER,
    FLOAT32,
    IMAGE,
    KERNEL,
    call,
    convolution,
    good_request,
    output,
    refused,
    request,
)

from convolver.client import Client
from convolver.core.errors import InvalidConvolution
from convolver.core.wire import split
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

    from convolver.v1.convolution_pb2 import Convolution

INT8 = tensor_pb2.DATA_TYPE_INT8
BEYOND = 2**31


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    """A plain channel; after each test the same server answers a good call."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel
        np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)


class Wrong(NamedTuple):
    """A request that contradicts a rule: shapes and parameters as the SDK takes them, and how to write the same in the
    message; the field, and what the text must name.
    """

    field: str
    names: tuple[str, ...]
    input_shape: tuple[int, ...] = (1, 1, 3, 3)
    weight_shape: tuple[int, ...] = (1, 1, 2, 2)
    bias_shape: tuple[int, ...] | None = None
    parameters: dict[str, Any] = {}  # noqa: RUF012 - never written to
    write: Callable[[Convolution], object] = lambda _: None


def listed(name: str, *values: int) -> Callable[[Convolution], object]:
    return lambda header: getattr(header.layers[0].definition.parameters, name).extend(values)


def set_to(name: str, value: object) -> Callable[[Convolution], object]:
    return lambda header: setattr(header.layers[0].definition.parameters, name, value)


def padded(begin: tuple[int, ...], end: tuple[int, ...]) -> Callable[[Convolution], object]:
    def write(header: Convolution) -> None:
        header.layers[0].definition.parameters.explicit_padding.begin.extend(begin)
        header.layers[0].definition.parameters.explicit_padding.end.extend(end)

    return write


def both(*writes: Callable[[Convolution], object]) -> Callable[[Convolution], object]:
    return lambda header: [write(header) for write in writes]


WRONG = {
    "a kernel larger than the image": Wrong("input.shape[2]", ("3", "2"), (1, 1, 2, 5), (1, 1, 3, 3)),
    "a dilated kernel larger than the image": Wrong(
        "input.shape[3]",
        ("spanning 5", "4"),
        (1, 1, 9, 4),
        (1, 1, 3, 3),
        parameters={"dilation": 2},
        write=listed("dilation", 2, 2),
    ),
    "channels": Wrong("input.shape[1]", ("3 channels", "(16, 4, 3, 3)", "expects 4"), (1, 3, 8, 8), (16, 4, 3, 3)),
    "channels of groups": Wrong(
        "input.shape[1]",
        ("4 channels", "groups=2", "expects 6"),
        (1, 4, 8, 8),
        (4, 3, 3, 3),
        parameters={"groups": 2},
        write=set_to("groups", 2),
    ),
    "groups that do not divide": Wrong(
        "groups", ("3", "16"), (1, 12, 8, 8), (16, 4, 3, 3), parameters={"groups": 3}, write=set_to("groups", 3)
    ),
    "an input of the wrong rank": Wrong("input.shape", ("2 dimensions", "4"), (3, 3)),
    "a weight of the wrong rank": Wrong("weight.shape", ("(2, 2)", "0"), weight_shape=(2, 2)),
    "four spatial dimensions": Wrong("weight.shape", ("4", "3"), (1,) * 6, (1,) * 6),
    "a bias of the wrong length": Wrong("bias.shape", ("(3,)", "1"), bias_shape=(3,)),
    "no channels": Wrong("weight.shape[1]", ("(1, 0, 2, 2)", "0"), (1, 0, 3, 3), (1, 0, 2, 2)),
    "a kernel of nothing": Wrong("weight.shape[3]", ("(1, 1, 2, 0)", "0"), weight_shape=(1, 1, 2, 0)),
    "a stride of 0": Wrong("stride[1]", ("0", "1"), parameters={"stride": (1, 0)}, write=listed("stride", 1, 0)),
    "a stride beyond 2^31-1": Wrong(
        "stride[0]", (str(BEYOND), "2^31-1"), parameters={"stride": (BEYOND, 1)}, write=listed("stride", BEYOND, 1)
    ),
    "a dilation of 2^62": Wrong(
        "dilation[1]", (str(2**62), "2^31-1"), parameters={"dilation": (1, 2**62)}, write=listed("dilation", 1, 2**62)
    ),
    "padding beyond 2^31-1": Wrong(
        "padding[0][1]",
        (str(BEYOND), "2^31-1"),
        parameters={"padding": [(0, BEYOND), (0, 0)]},
        write=padded((0, 0), (BEYOND, 0)),
    ),
    "groups beyond 2^31-1": Wrong(
        "groups", (str(BEYOND), "2^31-1"), parameters={"groups": BEYOND}, write=set_to("groups", BEYOND)
    ),
    "a list of the wrong length": Wrong(
        "stride", ("3 entries", "2"), parameters={"stride": (1, 1, 1)}, write=listed("stride", 1, 1, 1)
    ),
    "an output beyond 2^31-1": Wrong(
        "input.shape[2]",
        ("2^31-1",),
        parameters={"padding": [(2**31 - 1, 2**31 - 1), (0, 0)]},
        write=padded((2**31 - 1, 0), (2**31 - 1, 0)),
    ),
    "output_padding that is not below the stride": Wrong(
        "output_padding[0]",
        ("2", "max(2, 1)"),
        parameters={"transposed": True, "stride": 2, "output_padding": 2},
        write=both(listed("stride", 2, 2), listed("output_padding", 2, 2), set_to("transposed", 1)),
    ),
    "output_padding without transposed": Wrong(
        "output_padding",
        ("transposed",),
        parameters={"output_padding": (1, 1)},
        write=listed("output_padding", 1, 1),
    ),
}


def header_of(wrong: Wrong) -> Convolution:
    header = convolution(wrong.input_shape, wrong.weight_shape)
    if wrong.bias_shape is not None:
        header.layers[0].definition.bias.CopyFrom(tensor_pb2.Tensor(dtype=FLOAT32, shape=wrong.bias_shape))
    wrong.write(header)
    return header


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_convolve_names_the_field_and_the_numbers(channel: grpc.Channel, wrong: Wrong) -> None:
    answer = refused(channel, request(header_of(wrong)))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, wrong.field)
    assert answer.info.reason == "INVALID_CONVOLUTION"
    assert all(name in answer.text for name in wrong.names), answer.text


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_plan_refuses_in_the_words_of_convolve(channel: grpc.Channel, wrong: Wrong) -> None:
    asked = pb.PlanRequest(convolution=header_of(wrong)).SerializeToString()
    assert refused(channel, asked, "Plan") == refused(channel, request(header_of(wrong)))


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_the_sdk_refuses_in_the_words_of_the_server(channel: grpc.Channel, client: Client, wrong: Wrong) -> None:
    bias = None if wrong.bias_shape is None else np.zeros(wrong.bias_shape, np.float32)
    image, kernel = np.zeros(wrong.input_shape, np.float32), np.zeros(wrong.weight_shape, np.float32)
    with pytest.raises(InvalidConvolution) as caught:
        client.run(image, kernel, bias, **wrong.parameters)
    answer = refused(channel, request(header_of(wrong)))
    assert (caught.value.message, caught.value.field) == (answer.text, answer.field)


@pytest.mark.parametrize(
    "wrong", [case for case in WRONG.values() if case.bias_shape is None], ids=lambda wrong: wrong.field
)
def test_the_sdks_plan_refuses_in_the_words_of_the_server(channel: grpc.Channel, client: Client, wrong: Wrong) -> None:
    with pytest.raises(InvalidConvolution) as caught:
        client.plan(wrong.input_shape, wrong.weight_shape, **wrong.parameters)
    answer = refused(channel, request(header_of(wrong)))
    assert (caught.value.message, caught.value.field) == (answer.text, answer.field)


def test_mixed_dtypes_are_named_both(channel: grpc.Channel, client: Client) -> None:
    header = convolution()
    header.input.dtype = INT8
    answer = refused(channel, request(header))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "weight.dtype")
    assert "int8" in answer.text
    assert "float32" in answer.text
    with pytest.raises(InvalidConvolution) as caught:
        client.conv2d(IMAGE.astype(np.int8), KERNEL)
    assert caught.value.message == answer.text


@pytest.mark.parametrize("number", [0, 99, -1])
@pytest.mark.parametrize("name", ["input", "weight"])
def test_an_unknown_dtype_is_named_by_its_number(channel: grpc.Channel, name: str, number: int) -> None:
    header = convolution()
    tensor: Any = header.input if name == "input" else header.layers[0].definition.weight
    tensor.dtype = number
    answer = refused(channel, request(header))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, f"{name}.dtype")
    assert f"{name}.dtype is {number}" in answer.text


@pytest.mark.parametrize(
    "name", ["padding_word", "padding_mode", "layout"], ids=["padding word", "padding mode", "layout"]
)
def test_an_unknown_word_is_named_by_its_number(channel: grpc.Channel, name: str) -> None:
    header = convolution()
    set_to(name, 77)(header)
    answer = refused(channel, request(header))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, name.removesuffix("_word"))
    assert "77" in answer.text


def test_shapes_are_compared_with_their_bytes(channel: grpc.Channel) -> None:
    answer = refused(channel, request(convolution(), KERNEL, IMAGE.tobytes()[:-1]))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "input")
    assert "36 bytes" in answer.text
    assert "has 35" in answer.text


@pytest.mark.parametrize("missing", ["layers", "input", "weight", "everything"])
def test_what_is_missing_is_named(channel: grpc.Channel, missing: str) -> None:
    header = convolution()
    if missing == "weight":
        header.layers[0].definition.ClearField("weight")
    elif missing == "everything":
        header.Clear()
    else:
        header.ClearField(missing)  # type: ignore[arg-type]  # one of its fields
    answer = refused(channel, request(header))
    expected = "layers" if missing == "everything" else missing
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, expected)


@pytest.mark.parametrize("method", ["Convolve", "Plan", "GetInfo"])
def test_random_bytes_are_no_message(channel: grpc.Channel, method: str) -> None:
    answer = refused(channel, bytes([0xFF] * 64), method)
    assert answer.code == grpc.StatusCode.INVALID_ARGUMENT
    assert answer.info.reason == "INVALID_CONVOLUTION"


def test_a_message_cut_short_anywhere_is_refused(channel: grpc.Channel) -> None:
    message = good_request()
    header, _ = split(message)
    for length in range(len(message)):
        answer = refused(channel, message[:length])
        assert answer.code == grpc.StatusCode.INVALID_ARGUMENT, (length, answer.text)
    assert len(header) > 20  # so that the cuts went through it


def test_too_many_entries_of_data_are_refused(channel: grpc.Channel) -> None:
    answer = refused(channel, request(convolution(), *[b""] * 4097))
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert "4097" in answer.text
    assert "4096" in answer.text
