"""Requests whose tensors are in shared memory, as a stranger writes them."""

from __future__ import annotations

import ctypes
import os
import threading
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL, call, convolution, output, refusal, refused, request
from tests.server.chunked_calls import chunked
from tests.server.hold_calls import PAGE, Memfd, OpenHold, mappings, part, until_nothing_is_shared
from tests.server.stream_calls import OpenStream, item, of_dtype, status
from tests.wait import until

from convolver.v1 import convolution_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RunningServer

    from convolver.v1.convolution_pb2 import Convolution

KERNEL_AT, OUTPUT_AT = 64, 128
"""In the memory of `region`, behind IMAGE, which is at its start."""


class Region:
    """Shared memory with IMAGE and KERNEL in it."""

    def __init__(self, hold: OpenHold, memory: Memfd) -> None:
        self.hold, self.memory = hold, memory
        self.id = hold.hold(1, memory)
        memory.write(IMAGE.tobytes())
        memory.write(KERNEL.tobytes(), KERNEL_AT)

    def output(self) -> np.ndarray[Any, Any]:
        return np.frombuffer(self.memory.read(ANSWER.nbytes, OUTPUT_AT), np.float32).reshape(ANSWER.shape)


@pytest.fixture
def region(sharing_channel: grpc.Channel, sharing_server: RunningServer) -> Iterator[Region]:
    with OpenHold(sharing_channel) as hold, Memfd() as memory:
        yield Region(hold, memory)
    until_nothing_is_shared(sharing_server)
    until(lambda: mappings(sharing_server) == 0, "the memory to be unmapped")


def read_there(region: Region, **changes: int | str) -> Convolution:
    header = convolution()
    header.input_source.region.CopyFrom(part(region.id, IMAGE.nbytes))
    for name, value in changes.items():
        setattr(header.input_source.region, name, value)
    return header


def written_there(region: Region, header: Convolution, **changes: int | str) -> Convolution:
    header.output_regions.append(part(region.id, ANSWER.nbytes, OUTPUT_AT))
    for name, value in changes.items():
        setattr(header.output_regions[0], name, value)
    return header


def test_an_input_is_read_there(region: Region, sharing_channel: grpc.Channel) -> None:
    answer = call(sharing_channel, request(read_there(region), KERNEL))
    np.testing.assert_array_equal(output(answer), ANSWER)


def test_everything_is_there(region: Region, sharing_channel: grpc.Channel) -> None:
    header = written_there(region, read_there(region))
    header.layers[0].weight_source.region.CopyFrom(part(region.id, KERNEL.nbytes, KERNEL_AT))
    response = pb.ConvolveResponse.FromString(call(sharing_channel, request(header)))
    assert (list(response.data), list(response.result.plan.outputs[0].shape)) == ([], list(ANSWER.shape))
    np.testing.assert_array_equal(region.output(), ANSWER)


def test_what_is_not_aligned_is_read_and_written(region: Region, sharing_channel: grpc.Channel) -> None:
    region.memory.write(IMAGE.tobytes(), 2001)
    call(sharing_channel, request(written_there(region, read_there(region, offset=2001), offset=OUTPUT_AT + 3), KERNEL))
    found = np.frombuffer(region.memory.read(ANSWER.nbytes, OUTPUT_AT + 3), np.float32)
    np.testing.assert_array_equal(found, ANSWER.ravel())


def test_a_stream_uses_it_too(region: Region, sharing_channel: grpc.Channel) -> None:
    with OpenStream(sharing_channel) as stream:
        stream.send(item(1, written_there(region, read_there(region)), KERNEL))
        assert stream.next().WhichOneof("outcome") == "result"
        stream.send(item(2, read_there(region, id="none"), KERNEL))
        assert "no region has the id 'none'" in status(stream.next()).message
    np.testing.assert_array_equal(region.output(), ANSWER)


def test_chunks_leave_out_what_is_there(region: Region, sharing_channel: grpc.Channel) -> None:
    answers = chunked(sharing_channel, read_there(region), KERNEL.tobytes())
    assert b"".join(data for answer in answers for data in answer.data) == ANSWER.tobytes()
    answers = chunked(sharing_channel, written_there(region, convolution()), KERNEL.tobytes(), IMAGE.tobytes())
    assert not any(answer.data for answer in answers)
    np.testing.assert_array_equal(region.output(), ANSWER)


def test_gradients_have_a_region_each(region: Region, sharing_channel: grpc.Channel) -> None:
    header = read_there(region)
    gradients = convolution_pb2.Gradients(input=True, weight=True)
    gradients.grad_output.CopyFrom(header.input)
    gradients.grad_output.shape[:] = [1, 1, 2, 2]
    header.gradients.CopyFrom(gradients)
    header.output_regions.extend([part(region.id, IMAGE.nbytes, 512), part(region.id, KERNEL.nbytes, 1024)])
    grad = np.array([[1, 2], [3, 4]], np.float32)
    call(sharing_channel, request(header, KERNEL, grad))
    inputs = np.lib.stride_tricks.sliding_window_view(IMAGE[0, 0], (2, 2))
    weight = np.frombuffer(region.memory.read(KERNEL.nbytes, 1024), np.float32).reshape(2, 2)
    np.testing.assert_array_equal(weight, np.einsum("ijkl,kl->ij", inputs, grad))
    del header.output_regions[1]
    answer = refused(sharing_channel, request(header, KERNEL, grad))
    assert (answer.field, "has 1 entries, but the answer has 2" in answer.text) == ("output_regions", True)


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"id": ""}, "id", "no region has the id ''"),
        ({"id": "0" * 32}, "id", "no region has the id '0"),
        ({"id": "\u0000" * 10000}, "id", "no region has the id"),
        ({"length": 0}, "length", "has 0 bytes of a region, but the tensor has 36"),
        ({"length": 35}, "length", "has 35 bytes"),
        ({"length": 2**64 - 1}, "length", "has 18446744073709551615 bytes"),
        ({"offset": PAGE - 35}, "offset", "ends at byte 4097 (offset 4061), but the region has 4096"),
        ({"offset": 2**64 - 36}, "offset", "but the region has 4096"),
        ({"offset": 2**63}, "offset", "but the region has 4096"),
    ],
)
def test_what_is_not_in_the_region_is_refused(
    region: Region, sharing_channel: grpc.Channel, changes: dict[str, int | str], field: str, says: str
) -> None:
    answer = refused(sharing_channel, request(read_there(region, **changes), KERNEL))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, f"input_source.region.{field}")
    assert says in answer.text
    if "length" not in changes and changes.get("offset") != PAGE - 35:  # where the output fits
        answer = refused(sharing_channel, request(written_there(region, convolution(), **changes), KERNEL, IMAGE))
        assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, f"output_regions[0].{field}")


@pytest.mark.parametrize("offset", [0, 20, 35])
def test_an_output_may_not_be_written_over_an_input(region: Region, sharing_channel: grpc.Channel, offset: int) -> None:
    answer = refused(sharing_channel, request(written_there(region, read_there(region), offset=offset), KERNEL))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "output_regions[0]")
    assert "overlaps" in answer.text
    call(sharing_channel, request(written_there(region, read_there(region), offset=36), KERNEL))


def test_inputs_may_overlap(region: Region, sharing_channel: grpc.Channel) -> None:
    header = read_there(region)
    header.layers[0].weight_source.region.CopyFrom(part(region.id, KERNEL.nbytes))
    expected = call(sharing_channel, request(convolution(), IMAGE.ravel()[:4], IMAGE))
    np.testing.assert_array_equal(output(call(sharing_channel, request(header))), output(expected))


def test_a_bool_in_shared_memory_is_0_or_1(region: Region, sharing_channel: grpc.Channel) -> None:
    header = convolution(dtype=of_dtype("bool"))
    header.input_source.region.CopyFrom(part(region.id, 9))
    region.memory.write(bytes([0, 1] * 4 + [2]))
    answer = refused(sharing_channel, request(header, b"\1\0\0\1"))
    assert "input has the byte 2 at 8" in answer.text


def test_an_id_is_worth_nothing_once_its_stream_has_ended(
    region: Region, sharing_channel: grpc.Channel, sharing_server: RunningServer
) -> None:
    message = request(read_there(region), KERNEL)
    call(sharing_channel, message)
    region.hold.close()
    until_nothing_is_shared(sharing_server)
    assert "no region has the id" in refused(sharing_channel, message).text


def test_memory_that_changes_all_the_time_is_read_as_something(
    region: Region, sharing_channel: grpc.Channel, sharing_server: RunningServer
) -> None:
    """Ints and bools, which are looked at before they are computed with, and a layer that is kept by its digest."""
    stop = threading.Event()

    def scribble() -> None:
        while not stop.is_set():
            region.memory.write(os.urandom(64))
            region.memory.write(bytes(64))

    scribbling = threading.Thread(target=scribble)
    scribbling.start()
    codes = set()
    for i in range(200):
        dtype = of_dtype("bool" if i % 2 else "int32")
        header = convolution(dtype=dtype)
        size = 1 if i % 2 else 4
        header.input_source.region.CopyFrom(part(region.id, 9 * size))
        header.layers[0].weight_source.region.CopyFrom(part(region.id, 4 * size))
        header.layers[0].keep = True
        try:
            call(sharing_channel, request(header))
        except grpc.RpcError as failure:
            codes.add(refusal(failure).code)
    stop.set()
    scribbling.join()
    assert codes <= {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE}
    assert sharing_server.process.poll() is None


def test_a_hole_in_shared_memory_reads_as_zeros(region: Region, sharing_channel: grpc.Channel) -> None:
    """Memory cannot be cut short under the server, but its pages can be taken away."""
    libc = ctypes.CDLL(None, use_errno=True)
    keep_size, punch_hole = 1, 2
    libc.fallocate(region.memory.descriptor, keep_size | punch_hole, ctypes.c_long(0), ctypes.c_long(PAGE))
    assert region.memory.read(16) == bytes(16)
    np.testing.assert_array_equal(output(call(sharing_channel, request(read_there(region), KERNEL))), 0 * ANSWER)
