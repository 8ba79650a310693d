"""Calls of ConvolveStream as a stranger writes them, and requests that take their time."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2
from tests.contract import IMAGE, KERNEL, SERVICE, convolution, refusal

from convolver.v1 import convolution_pb2, tensor_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from tests.contract import Refusal

    from convolver.v1.convolution_pb2 import Convolution

LABELS = f'{{grpc_method="ConvolveStream",grpc_service="{SERVICE}",grpc_type="bidi_stream"}}'
RECEIVED, SENT = (f"grpc_server_msg_{way}_total{LABELS}" for way in ("received", "sent"))

SLOW_IMAGE = np.ones((1, 1, 650, 650), np.float32)
SLOW_KERNEL = np.ones((1, 1, 200, 200), np.float32)
SLOW_MACS = 451**2 * 200**2


class OpenStream:
    """An open call: `send` does not wait, and iterating gives the answers until the call has ended."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._outgoing = SimpleQueue[bytes | None]()
        call: Any = channel.stream_stream(f"/{SERVICE}/ConvolveStream")
        self.call = call(iter(self._outgoing.get, None), timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._outgoing.put(None)
        self.call.cancel()

    def __iter__(self) -> Iterator[pb.ConvolveStreamResponse]:
        return map(pb.ConvolveStreamResponse.FromString, self.call)

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self._outgoing.put(message)

    def close(self) -> None:
        """Says that there are no more requests."""
        self._outgoing.put(None)

    def next(self) -> pb.ConvolveStreamResponse:
        return next(iter(self))

    def failure(self) -> Refusal:
        """How the call ends, which it does without another answer."""
        with pytest.raises(grpc.RpcError) as caught:
            next(self.call)
        return refusal(caught.value)


def item(number: int, header: Convolution, *data: NDArray[Any], timeout: float | None = None) -> bytes:
    """A ConvolveStreamRequest as protobuf itself serialises it."""
    entries = [array.tobytes() for array in data]
    message = pb.ConvolveStreamRequest(id=number, convolution=header, data=entries, timeout_seconds=timeout)
    return message.SerializeToString()


def quick(number: int, timeout: float | None = None) -> bytes:
    """The one that ANSWER answers."""
    return item(number, convolution(), KERNEL, IMAGE, timeout=timeout)


def ordinary(number: int) -> bytes:
    """Too many bytes for the event loop, so that it waits for a thread."""
    shape = (1, 1, 600, 600)
    return item(number, convolution(shape, (1, 1, 2, 2)), np.ones((1, 1, 2, 2), np.float32), np.ones(shape, np.float32))


def padded(number: int) -> bytes:
    """Some bytes that ask for a megabyte."""
    header = convolution((1, 1, 1), (1, 1, 1))
    header.layers[0].definition.parameters.explicit_padding.begin.append(0)
    header.layers[0].definition.parameters.explicit_padding.end.append(250_000)
    return item(number, header, np.ones(1, np.float32), np.ones(1, np.float32))


def slow_header() -> Convolution:
    """Two seconds of direct sums, on most machines, whose output is 40,000 everywhere."""
    header = convolution(SLOW_IMAGE.shape, SLOW_KERNEL.shape)
    header.execution.algorithm = convolution_pb2.ALGORITHM_DIRECT
    return header


def slow(number: int, timeout: float | None = None) -> bytes:
    return item(number, slow_header(), SLOW_KERNEL, SLOW_IMAGE, timeout=timeout)


def tensor(answer: pb.ConvolveStreamResponse, dtype: Any = np.float32) -> NDArray[Any]:  # noqa: ANN401 - whatever NumPy takes for a dtype
    """The one tensor of an answer."""
    assert answer.WhichOneof("outcome") == "result", answer.status
    (header,), (data,) = answer.result.plan.outputs, answer.data
    return np.frombuffer(data, dtype).reshape(tuple(header.shape))


def status(answer: pb.ConvolveStreamResponse) -> status_pb2.Status:
    """What went wrong, in Google's type: the same bytes."""
    assert answer.WhichOneof("outcome") == "status"
    return status_pb2.Status.FromString(answer.status.SerializeToString())


def of_dtype(name: str) -> tensor_pb2.DataType.ValueType:
    return tensor_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}")
