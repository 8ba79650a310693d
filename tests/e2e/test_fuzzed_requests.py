"""Requests that nobody would write: each is answered or refused with a reason, and the server serves on."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract import ANSWER, FLOAT32, call, convolution, good_request, output, refusal, request

from convolver.core import dtypes
from convolver.v1 import convolution_pb2, tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

TYPED = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED}
TYPED |= {grpc.StatusCode.OUT_OF_RANGE}


@pytest.fixture(scope="module")
def channel(serve: Callable[..., RunningServer]) -> Iterator[grpc.Channel]:
    """To a server that computes no request for long; it answers a good call after all of them."""
    running = serve("--max-work=1e7", "--max-request-bytes=16MiB", "--memory-budget=64MiB", "--max-output-elements=1e6")
    with grpc.insecure_channel(running.address) as channel:
        yield channel
        np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)
    assert running.stop() == 0
    assert not [line for line in running.lines if "Traceback" in line]


def check_answered(channel: grpc.Channel, message: bytes) -> None:
    """The call succeeds, or fails with one of our statuses."""
    try:
        call(channel, message)
    except grpc.RpcError as failure:
        said = refusal(failure)
        assert said.code in TYPED, said
        assert said.info.domain == "convolver", said


@settings(max_examples=200)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bits_are_answered_or_refused(channel: grpc.Channel, flips: list[tuple[int, int]]) -> None:
    message = bytearray(good_request())
    for place, bits in flips:
        message[place % len(message)] ^= bits
    check_answered(channel, bytes(message))


@settings(max_examples=200)
@given(message=st.binary(max_size=200))
def test_random_bytes_are_answered_or_refused(channel: grpc.Channel, message: bytes) -> None:
    check_answered(channel, message)


SMALL = st.integers(1, 3)
PAD = st.integers(-1, 3)
EXTREME = st.sampled_from([0, -1, 5, -(2**31), 2**16, 2**31 - 1, 2**31, 2**62, -(2**63)])


@st.composite
def parameters(draw: st.DrawFn, ndim: int) -> convolution_pb2.Parameters:
    """Each in its range, in every combination; not all go together."""
    message = convolution_pb2.Parameters(transposed=draw(st.booleans()), flip=draw(st.booleans()))
    lists = ["stride", "dilation", "output_padding" if message.transposed else "input_dilation"]
    for name in draw(st.sets(st.sampled_from(lists))):
        getattr(message, name).extend(draw(st.lists(SMALL, min_size=ndim, max_size=ndim)))
    message.layout = cast("Any", draw(st.integers(0, 2)))
    if not message.transposed:
        message.padding_mode = cast("Any", draw(st.integers(0, 6)))
    if draw(st.booleans()):
        message.padding_word = cast("Any", draw(st.integers(1, 5)))
    else:
        message.explicit_padding.begin.extend(draw(st.lists(PAD, min_size=ndim, max_size=ndim)))
        message.explicit_padding.end.extend(draw(st.lists(PAD, min_size=ndim, max_size=ndim)))
    return message


@st.composite
def convolutions(draw: st.DrawFn) -> convolution_pb2.Convolution:
    """Small, of any type, rank and layout, with channels that fit; most of them are answered."""
    ndim = draw(st.integers(1, 3))
    given = draw(parameters(ndim))
    batch, groups, channels, features = draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(SMALL), draw(SMALL)
    sizes: list[int] = draw(st.lists(st.integers(3, 7), min_size=ndim, max_size=ndim))
    kernel: list[int] = draw(st.lists(SMALL, min_size=ndim, max_size=ndim))
    pair = (channels * groups, features) if given.transposed else (features * groups, channels)
    first = given.layout != convolution_pb2.LAYOUT_CHANNELS_LAST
    weight = (*pair, *kernel) if first else (*kernel, pair[1], pair[0])
    image = (batch, channels * groups, *sizes) if first else (batch, *sizes, channels * groups)
    dtype = cast("Any", draw(st.integers(1, 17)))
    header = convolution(image, weight, dtype)
    given.groups = groups
    header.layers[0].definition.parameters.CopyFrom(given)
    if dtype == FLOAT32:
        header.layers[0].definition.activation = cast("Any", draw(st.integers(0, 12)))
    header.overflow = cast("Any", draw(st.integers(0, 3)))
    header.execution.backend = draw(st.sampled_from(["", "reference"] if dtype < 10 else ["", "torch", "reference"]))
    header.execution.deterministic = draw(st.booleans())
    return header


Leaf = tuple[Message, FieldDescriptor, int | None]


def leaves(message: Message) -> Iterator[Leaf]:
    """Every number that is set, in whatever depth: its message, its field, and its index in a list."""
    for field, value in message.ListFields():
        entries = enumerate(value) if field.is_repeated else [(None, value)]
        for index, entry in entries:
            if isinstance(entry, Message):
                yield from leaves(entry)
            elif isinstance(entry, int):
                yield message, field, index


def replace(leaf: Leaf, value: int) -> None:
    """Puts the value there, as far as the field's type has it."""
    message, field, index = leaf
    value = value % 2**7 if field.cpp_type == field.CPPTYPE_ENUM else value
    value = bool(value) if field.cpp_type == field.CPPTYPE_BOOL else value
    if index is None:
        setattr(message, field.name, value)
    else:
        getattr(message, field.name)[index] = value


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A convolution with at most two numbers replaced, and bytes for its tensors."""
    header = draw(convolutions())
    numbers = list(leaves(header))
    for place in draw(st.lists(st.integers(0, len(numbers) - 1), max_size=2)):
        replace(numbers[place], draw(EXTREME))
    byte = bytes([draw(st.sampled_from([0, 1, 0x7F, 0xFF]))])
    return request(header, *(byte * size_of(tensor) for tensor in (header.layers[0].definition.weight, header.input)))


def size_of(tensor: tensor_pb2.Tensor) -> int:
    """Bytes of its data, where that is a number that one can send."""
    row = list(dtypes.TABLE.values())[tensor.dtype - 1] if 0 < tensor.dtype <= len(dtypes.TABLE) else None
    size = prod(tensor.shape) * (row.itemsize if row else 1)
    return size if 0 <= size <= 2**16 else 0


@settings(max_examples=600)
@given(message=requests())
def test_parameters_in_every_combination_are_answered_or_refused(channel: grpc.Channel, message: bytes) -> None:
    check_answered(channel, message)
