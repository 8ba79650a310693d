"""How long the server keeps shared memory: as long as a request uses it, and no longer, however that ends."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from tests.contract import call, convolution, refusal, refused, request
from tests.server.chunked_calls import chunked
from tests.server.hold_calls import BUDGET, Memfd, OpenHold, mappings, part, why
from tests.server.layer_calls import metric
from tests.server.stream_calls import OpenStream, item, status
from tests.wait import until

from convolver.core import request_codec
from convolver.core.errors import Overloaded
from convolver.core.operation import Tensor
from convolver.v1 import convolution_pb2, tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

    from convolver.v1.convolution_pb2 import Convolution


def test_a_region_that_was_released_stays_until_its_requests_are_done(serve: Callable[..., RunningServer]) -> None:
    running = serve(  # one thread of this back end takes seconds, in which everything else has to happen
        "--backend=reference", "--threads=1", "--shared-memory", f"--shared-memory-budget={BUDGET}"
    )
    image, kernel = np.ones((1, 1, 700, 700), np.float32), np.ones((1, 1, 200, 200), np.float32)
    header = convolution(image.shape, kernel.shape)
    header.execution.algorithm = convolution_pb2.ALGORITHM_DIRECT
    size = 501 * 501 * 4
    with (
        grpc.insecure_channel(running.address) as channel,
        OpenHold(channel) as hold,
        Memfd(BUDGET) as memory,
        Memfd() as another,
    ):
        name = hold.hold(1, memory)
        memory.write(image.tobytes())
        header.input_source.region.CopyFrom(part(name, image.nbytes))
        header.output_regions.append(part(name, size, image.nbytes))
        calling = threading.Thread(target=call, args=(channel, request(header, kernel)))
        calling.start()
        until(lambda: metric(running, "convolver_in_flight") == 1, "the request to run")
        hold.release(1)
        assert mappings(running) == 1
        until(lambda: is_full(hold, another), "what is used to take room")
        calling.join()
        until(lambda: not is_full(hold, another), "there to be room")
        assert (np.frombuffer(memory.read(size, image.nbytes), np.float32) == 200 * 200).all()
    until(lambda: mappings(running) == 0, "the memory to be unmapped")


def is_full(hold: OpenHold, memory: Memfd) -> bool:
    """Whether the server has no room for another region now."""
    answer = hold.offer(99, memory.descriptor)
    if answer.HasField("challenge"):
        hold.release(99)
        return False
    return isinstance(why(answer), Overloaded)


def alone(channel: grpc.Channel, header: Convolution) -> grpc.StatusCode:
    return refused(channel, request(header)).code


def in_a_stream(channel: grpc.Channel, header: Convolution) -> grpc.StatusCode:
    with OpenStream(channel) as stream:
        stream.send(item(1, header))
        assert "int8 (-128 to 127) does not hold" in status(stream.next()).message
    return grpc.StatusCode.OUT_OF_RANGE


def in_chunks(channel: grpc.Channel, header: Convolution) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        chunked(channel, header)
    return refusal(caught.value).code


@pytest.mark.parametrize("send", [alone, in_a_stream, in_chunks])
@pytest.mark.parametrize("size", [10, 700], ids=["on the loop", "in a thread"])
def test_a_request_that_fails_lets_go_of_its_memory_without_a_collection(
    sharing_channel: grpc.Channel,
    sharing_server: RunningServer,
    send: Callable[[grpc.Channel, Convolution], grpc.StatusCode],
    size: int,
) -> None:
    header = convolution((1, 1, size, size), dtype=tensor_pb2.DATA_TYPE_INT8)
    with OpenHold(sharing_channel) as hold, Memfd(2**20) as memory:
        name = hold.hold(1, memory)
        memory.write(bytes([100]) * size**2)
        header.input_source.region.CopyFrom(part(name, size**2))
        header.layers[0].weight_source.region.CopyFrom(part(name, 4))
        header.output_regions.append(part(name, (size - 1) ** 2, size**2))
        assert send(sharing_channel, header) == grpc.StatusCode.OUT_OF_RANGE
    until(lambda: mappings(sharing_server) == 0, "the memory to be unmapped")


@pytest.mark.parametrize("in_chunks", [False, True])
def test_so_does_one_that_is_planned_again(
    sharing_channel: grpc.Channel, sharing_server: RunningServer, *, in_chunks: bool
) -> None:
    image, kernel = np.full((1, 1, 400, 400), 1e38, np.float32), np.ones((1, 1, 31, 31), np.float32)
    size, tensors = 4 * 370**2, (Tensor("float32", image.shape), Tensor("float32", kernel.shape))
    header = request_codec.single_to_proto(*tensors, None, {"backend": "reference"})
    again = metric(sharing_server, "convolver_replanned_total")
    with OpenHold(sharing_channel) as hold, Memfd(2**21) as memory:
        name = hold.hold(1, memory)
        memory.write(image.tobytes())
        header.input_source.region.CopyFrom(part(name, image.nbytes))
        header.output_regions.append(part(name, size, image.nbytes))
        if in_chunks:
            chunked(sharing_channel, header, kernel.tobytes())
        else:
            call(sharing_channel, request(header, kernel))
        assert np.isinf(np.frombuffer(memory.read(size, image.nbytes), np.float32)).all()
    until(lambda: mappings(sharing_server) == 0, "the memory to be unmapped")
    assert metric(sharing_server, "convolver_replanned_total") == again + 1
