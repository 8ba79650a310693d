"""ConvolveChunked whatever the client's colour: the messages of a request, and the answer as it comes."""

from __future__ import annotations

import random
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple, cast

import grpc
import numpy as np

from convolver.client import _client_shared as shared
from convolver.client._answers import headers
from convolver.client._requests import Reply, Request, enveloped
from convolver.core import dtypes, plan_codec
from convolver.core.wire import join, split
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from convolver.core.operation import Tensor
    from convolver.core.plan import Report
    from convolver.core.tensors import Array

CHUNK = 1 << 20
"""Bytes of data of one message (docs/decisions/0012-when-chunks.md)."""

TRIES, PAUSE = 3, 0.05
"""How often a request is sent while nobody answers; the longest seconds before the second time, doubled each time."""


def messages(request: Request) -> Iterator[bytes]:
    """The header, then the data: the one copy of it, made when gRPC takes it."""
    yield enveloped(request.convolution)
    parts, room = list[memoryview](), CHUNK
    for view in request.data:
        start = 0
        while start < view.nbytes:
            parts.append(view[start : start + room])
            start += parts[-1].nbytes
            room -= parts[-1].nbytes
            if not room:
                yield join(b"", parts, filler=None)
                parts, room = [], CHUNK
    if parts:
        yield join(b"", parts, filler=None)


class _Part(NamedTuple):
    """The memory of a tensor's bytes that are still to come."""

    bytes: Array
    is_bool: bool

    @classmethod
    def of(cls, tensor: Array) -> _Part:
        """All of it."""
        return cls(tensor.reshape(-1).view(np.uint8), tensor.dtype == np.bool_)


class Incoming:
    """The answer of one call, written to where it stays as it comes. What does not fit raises BackendFailure."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._plan: bytes | None = None
        self._report: Report | None = None
        self._tensors: list[Array] = []
        self._left = deque[_Part]()

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return self._plan is not None

    def take(self, response: bytes) -> None:
        """The next message."""
        with shared.blaming_the_server():
            head, entries = split(response)
            if self._report is not None:
                raise ValueError("it goes on after its report")
            if head or self._plan is None:
                self._read(pb.ConvolveChunkedResponse.FromString(head))
            for entry in entries:
                self._write(np.frombuffer(entry, np.uint8))

    def reply(self) -> Reply:
        """All of it, once there is no more."""
        with shared.blaming_the_server():
            if self._left:
                raise ValueError(f"it ends {sum(part.bytes.size for part in self._left)} bytes before its tensors do")
            if self._plan is None or self._report is None:
                raise ValueError(f"it ends without its {'result' if self._plan is None else 'report'}")
            return Reply(self._plan, self._report, self._tensors)

    def _read(self, message: pb.ConvolveChunkedResponse) -> None:
        if message.HasField("result") != (self._plan is None):
            raise ValueError("its result must be in its first message alone")
        if message.HasField("result"):
            self._plan = message.result.plan.SerializeToString()
            self._tensors = self._made(headers(self._plan))
            self._left.extend(_Part.of(array) for array in self._tensors if array.nbytes)
        if message.HasField("report"):
            self._report = plan_codec.report_from_proto(message.report)

    def _made(self, planned: Sequence[Tensor]) -> list[Array]:
        known = self._request.described.answer
        if planned != known:
            raise ValueError(f"its tensors would be {planned}, not {known}")
        if self._request.out:
            return [self._request.out.array]
        return [np.empty(shape, dtypes.TABLE[dtype].numpy) for dtype, shape in known]

    def _write(self, data: Array) -> None:
        while data.size:
            if not self._left:
                raise ValueError(f"it has {data.size} bytes or more beyond its tensors")
            target, is_bool = self._left.popleft()
            count = min(data.size, target.size)
            np.copyto(target[:count], data[:count])  # without Python's lock, which whoever sends may have meanwhile
            if is_bool and target[:count].max() > 1:
                raise ValueError("a bool is neither 0 nor 1")
            if count < target.size:
                self._left.appendleft(_Part(target[count:], is_bool))
            data = data[count:]


def may_be_repeated(failure: grpc.RpcError, incoming: Incoming) -> bool:
    """Whether nobody has begun to answer, and another may be there. gRPC repeats other calls by itself; for this one it
    would hold all that was sent.
    """
    return cast("grpc.Call", failure).code() is grpc.StatusCode.UNAVAILABLE and not incoming.has_begun


class Tries:
    """The pauses before a request is sent again, and the seconds that are left to it."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout
        self._pauses = [random.uniform(0, PAUSE * 2**i) for i in range(TRIES - 1)]  # noqa: S311 - no secret

    @property
    def seconds(self) -> float | None:
        """What the next call may take."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def pause(self) -> float | None:
        """Seconds to wait before the next try; None where there is none."""
        left = self.seconds
        if not self._pauses or (left is not None and left <= self._pauses[0]):
            return None
        return self._pauses.pop(0)
