"""Calls of ConvolveChunked as a stranger writes them."""

from __future__ import annotations

from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc
import pytest
from tests.contract import SERVICE, refusal

from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np
    from numpy.typing import NDArray
    from tests.contract import Refusal

    from convolver.v1 import plan_pb2
    from convolver.v1.convolution_pb2 import Convolution

LABELS = f'grpc_method="ConvolveChunked",grpc_service="{SERVICE}",grpc_type="bidi_stream"'
RECEIVED = f"grpc_server_msg_received_total{{{LABELS}}}"
ENDED = f"grpc_server_handling_seconds_count{{{LABELS}}}"
MEMORY, IN_FLIGHT = "convolver_memory_bytes", "convolver_in_flight"


class Answer(NamedTuple):
    """What a call answered: all but its data, and the data."""

    plan: plan_pb2.Plan
    report: plan_pb2.Report
    data: bytes


class OpenCall:
    """An open call: `send` does not wait, and iterating gives the messages of the answer."""

    def __init__(self, channel: grpc.Channel, *messages: bytes, timeout: float = 60) -> None:
        self._outgoing = SimpleQueue[bytes | None]()
        self.send(*messages)
        call: Any = channel.stream_stream(f"/{SERVICE}/ConvolveChunked")
        self.call = call(iter(self._outgoing.get, None), timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.call.cancel()

    def __iter__(self) -> Iterator[pb.ConvolveChunkedResponse]:
        return map(pb.ConvolveChunkedResponse.FromString, self.call)

    def send(self, *messages: bytes) -> None:
        for message in messages:
            self._outgoing.put(message)

    def close(self) -> None:
        """Says that there is no more data."""
        self._outgoing.put(None)

    def next(self) -> pb.ConvolveChunkedResponse:
        return next(iter(self))

    def answer(self) -> Answer:
        """All of it, whose messages are in order."""
        first, *rest = self
        messages = [first, *rest]
        assert [message.HasField("result") for message in messages] == [True] + [False] * len(rest)
        assert [message.HasField("report") for message in messages] == [False] * len(rest) + [True]
        assert not first.result.HasField("report")
        return Answer(first.result.plan, rest[-1].report, b"".join(part for each in messages for part in each.data))

    def failure(self) -> Refusal:
        """How the call ends, be it after some of an answer."""
        with pytest.raises(grpc.RpcError) as caught:
            for _ in self.call:
                pass
        return refusal(caught.value)


def first(header: Convolution, *data: bytes) -> bytes:
    """The first message as protobuf itself serialises it."""
    return pb.ConvolveChunkedRequest(convolution=header, data=data).SerializeToString()


def more(*data: bytes) -> bytes:
    """A later message."""
    return pb.ConvolveChunkedRequest(data=data).SerializeToString()


def chunks(data: bytes, size: int = 2**20) -> list[bytes]:
    """Messages of so many bytes of data, and one of what is left."""
    return [more(data[start : start + size]) for start in range(0, len(data), size)]


def data_of(*arrays: NDArray[Any]) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


def whole(channel: grpc.Channel, messages: Iterable[bytes]) -> Answer:
    """The answer to a call that sends them all."""
    with OpenCall(channel, *messages) as call:
        call.close()
        return call.answer()


def refused(channel: grpc.Channel, *messages: bytes) -> Refusal:
    """How a call ends that sends them all."""
    with OpenCall(channel, *messages) as call:
        call.close()
        return call.failure()


def random_borders(data: bytes, rng: np.random.Generator) -> Iterator[bytes]:
    """The data in messages of any number of entries, some of them empty, with borders anywhere."""
    cuts = sorted([*rng.integers(0, len(data) + 1, 12).tolist(), *range(0, len(data), 2**19)])
    entries = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    while entries:
        size = rng.integers(0, 5)
        yield more(*entries[:size])
        del entries[:size]


def chunked(channel: grpc.Channel, header: Convolution, *data: bytes) -> list[pb.ConvolveChunkedResponse]:
    """The answers to a call of one message."""
    send: Any = channel.stream_stream(f"/{SERVICE}/ConvolveChunked")
    message = pb.ConvolveChunkedRequest(convolution=header, data=data).SerializeToString()
    return [*map(pb.ConvolveChunkedResponse.FromString, send(iter([message]), timeout=60))]
