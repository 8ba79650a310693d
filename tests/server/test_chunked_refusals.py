"""What ConvolveChunked refuses: each by its field, on the header alone where that decides, and the server serves on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL, convolution, request
from tests.contract import refused as refused_by_convolve
from tests.server.chunked_calls import IN_FLIGHT, MEMORY, OpenCall, chunks, data_of, first, more, refused, whole
from tests.server.layer_calls import UNKNOWN, metric
from tests.server.test_stream import FAILING
from tests.wait import until

from convolver.core import request_codec
from convolver.core.operation import Tensor
from convolver.v1 import convolution_pb2, tensor_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RunningServer

    from convolver.v1.convolution_pb2 import Convolution

INVALID, UNIMPLEMENTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED
DATA = data_of(KERNEL, IMAGE)
LARGEST = 2**21


@pytest.fixture
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    """To a server that answers a good call after each test, and then holds nothing."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel
        assert whole(channel, [first(convolution()), more(DATA)]).data == ANSWER.tobytes()
        until(lambda: metric(server, IN_FLIGHT) == metric(server, MEMORY) == 0, "nothing to be left")


WRONG: dict[str, tuple[list[bytes], str]] = {
    "no message": ([], "convolution"),
    "an empty message": ([b""], "convolution"),
    "data alone": ([more(DATA)], "convolution"),
    "the header late": ([more(), first(convolution(), DATA)], "convolution"),
    "a header with no tensors": ([first(convolution_pb2.Convolution()), more(DATA)], "layers"),
    "a header with no input": ([first(convolution_pb2.Convolution(layers=convolution().layers))], "input"),
    "a second header": ([first(convolution()), first(convolution(), DATA)], "convolution"),
    "a second header after all data": ([first(convolution(), DATA), first(convolution())], "convolution"),
    "an empty second header": ([first(convolution(), DATA), b"\x0a\x00"], "convolution"),
    "no data": ([first(convolution())], "data"),
    "too little": ([first(convolution(), DATA[:-1])], "data"),
    "too much": ([first(convolution(), DATA, b"x")], "data"),
    "too much in the end": ([first(convolution()), more(DATA), more(b"x")], "data"),
    "a large first message": ([first(convolution(), bytes(LARGEST + 1))], "data"),
    "a large message": ([first(convolution()), more(bytes(LARGEST), b"x")], "data"),
    "a bool that is none": (
        [first(convolution(dtype=tensor_pb2.DATA_TYPE_BOOL)), more(b"\0\1\2" + bytes(10))],
        "weight",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_stream_is_refused_by_its_field(channel: grpc.Channel, name: str) -> None:
    messages, field = WRONG[name]
    answer = refused(channel, *messages)
    assert (answer.code, answer.field) == (INVALID, field), answer.text


def test_data_that_is_not_the_headers_is_refused_with_the_numbers(channel: grpc.Channel) -> None:
    there = "but there are 52 of weight (1, 1, 2, 2) of float32 and input (1, 1, 3, 3) of float32"
    assert refused(channel, first(convolution(), DATA[:-1])).text == f"51 bytes of data came, {there}"
    assert refused(channel, first(convolution(), DATA, b"xy")).text == f"54 bytes of data or more came, {there}"
    named = refused(channel, first(convolution()), more(bytes(LARGEST + 3))).text
    assert named == f"a message has {LARGEST + 3} bytes of data; it may have {LARGEST}"


def large(items: int = 12) -> Convolution:
    """Runs in pieces."""
    return convolution((items, 1, 1024, 1024), (1, 1, 3, 3))


@pytest.mark.parametrize("change", [-1, 1, LARGEST])
def test_too_little_and_too_much_void_what_has_come(channel: grpc.Channel, change: int) -> None:
    size = 36 + 12 * 2**22
    with OpenCall(channel, first(large()), *chunks(bytes(size))[:-1]) as opened:
        assert opened.next().HasField("result")
        while not opened.next().data:
            pass
        opened.send(*chunks(bytes(36 + change)))
        opened.close()
        assert (answer := opened.failure()).field == "data"
    assert answer.code == INVALID
    assert f"there are {size} of weight" in answer.text


@pytest.mark.parametrize("when", ["first", "later"])
@pytest.mark.parametrize("path", ["request", "convolution"])
def test_unknown_fields_are_refused_by_their_path(channel: grpc.Channel, path: str, when: str) -> None:
    header = convolution().SerializeToString() + (UNKNOWN if path == "convolution" else b"")
    message = b"\x0a" + bytes([len(header)]) + header
    if when == "later":
        message = first(convolution())
        answer = refused(channel, message, more(DATA), UNKNOWN)
        path = "request"
    else:
        answer = refused(channel, message + (UNKNOWN if path == "request" else b""))
    assert answer.code == UNIMPLEMENTED
    assert f"{path}.100" in answer.text


def test_what_is_no_protobuf_is_refused(channel: grpc.Channel) -> None:
    for garbage in (b"\xff", b"\x0a\x05abc", b"\x0a\x02\xff\xff", b"\x00\x00"):
        assert refused(channel, garbage).code == INVALID
        assert refused(channel, first(convolution()), more(DATA), garbage).code == INVALID


def test_headers_of_more_than_a_mebibyte_are_refused(channel: grpc.Channel) -> None:
    filler = pb.ConvolveChunkedRequest(filler=bytes(2**20 + 1)).SerializeToString()
    for messages in ([filler + first(convolution())], [first(convolution()), filler]):
        assert refused(channel, *messages).code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_an_index_is_refused(channel: grpc.Channel) -> None:
    header = convolution()
    header.input_source.index = 1
    assert refused(channel, first(header, DATA)).field == "input_source"


def test_an_input_that_is_left_out_is_refused(channel: grpc.Channel) -> None:
    header = convolution()
    header.input_source.omitted = True
    assert refused(channel, first(header, KERNEL.tobytes())).field == "input_source"


@pytest.mark.parametrize("name", sorted(FAILING.keys() - {"RESOURCE_EXHAUSTED"}))  # of the size of one message
def test_what_fails_has_the_status_of_convolve(channel: grpc.Channel, name: str) -> None:
    header, *arrays = FAILING[name]
    alone = refused_by_convolve(channel, request(header, *arrays))
    answer = refused(channel, first(header), *chunks(data_of(*arrays), 3))
    assert (answer.code, answer.info.reason) == (alone.code, alone.info.reason)
    if name != "INVALID_ARGUMENT, no data":  # which is said of entries in the one, of bytes in the other
        assert (answer.text, answer.field) == (alone.text, alone.field)


@pytest.mark.parametrize("items", [1, 40], ids=["whole", "in pieces"])
def test_an_integer_that_does_not_fit_is_named_as_by_convolve(channel: grpc.Channel, items: int) -> None:
    x, w = np.zeros((items, 1, 256, 256), np.int8), np.full((1, 1, 2, 2), 60, np.int8)
    x[-1, 0, 17, 5] = 100
    header = convolution(x.shape, w.shape, tensor_pb2.DATA_TYPE_INT8)
    alone = refused_by_convolve(channel, request(header, w, x))
    answer = refused(channel, first(header), *chunks(data_of(w, x)))
    assert (answer.code, answer.text) == (grpc.StatusCode.OUT_OF_RANGE, alone.text)


def test_an_fft_that_was_asked_for_refuses_what_is_not_finite(channel: grpc.Channel) -> None:
    x, w = np.ones((1, 1, 40, 40), np.float32), np.ones((1, 1, 9, 9), np.float32)
    x[0, 0, 3, 5] = np.inf
    tensors = (Tensor("float32", x.shape), Tensor("float32", w.shape))
    header = request_codec.single_to_proto(*tensors, None, {"algorithm": "fft"})
    answer = refused(channel, first(header), *chunks(data_of(w, x)))
    assert (answer.code, answer.field) == (INVALID, "input")
    assert "input[0, 0, 3, 5] is inf" in answer.text


def test_what_never_fits_is_refused_before_its_data_is_sent(channel: grpc.Channel) -> None:
    header = convolution((2**20, 1, 2**14, 2**10), (1, 1, 3, 3))
    with OpenCall(channel, first(header)) as opened:  # which says that more is to come
        answer = opened.failure()
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")


def test_an_error_while_the_first_message_goes_out_is_told(channel: grpc.Channel) -> None:
    for _ in range(150):
        assert refused(channel, first(large()), b"\xff").code == INVALID
