"""ConvolveChunked whatever the client's colour: the messages of a request, and the answer as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convolver.client import _client_shared as shared
from convolver.client._answers import headers
from convolver.client._requests import Reply, Request, enveloped
from convolver.core import dtypes, plan_codec
from convolver.core.chunks import CHUNK, Filling, chunks
from convolver.core.wire import join, split
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from convolver.core.operation import Tensor
    from convolver.core.plan import Report
    from convolver.core.tensors import Array


def messages(request: Request) -> Iterator[bytes]:
    """The header, then the data: the one copy of it, made when gRPC takes it."""
    yield enveloped(request.convolution)
    for data in chunks(request.data, CHUNK):
        yield join(b"", data, filler=None)


class Incoming:
    """The answer of one call, written to where it stays as it comes. What does not fit raises BackendFailure."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._plan: bytes | None = None
        self._report: Report | None = None
        self._tensors: list[Array] = []
        self._filling = Filling(())

    def take(self, response: bytes) -> None:
        """The next message."""
        with shared.blaming_the_server():
            head, entries = split(response)
            if self._report is not None:
                raise ValueError("it goes on after its report")
            if head or self._plan is None:
                self._read(pb.ConvolveChunkedResponse.FromString(head))
            for entry in entries:
                self._filling.take(entry)

    def reply(self) -> Reply:
        """All of it, once there is no more."""
        with shared.blaming_the_server():
            missing = self._filling.bytes - self._filling.come
            if missing:
                raise ValueError(f"it ends {missing} bytes before its tensors do")
            if self._plan is None or self._report is None:
                raise ValueError(f"it ends without its {'result' if self._plan is None else 'report'}")
            if any(array.dtype == np.bool_ and array.view(np.uint8).max(initial=0) > 1 for array in self._tensors):
                raise ValueError("a bool is neither 0 nor 1")
            return Reply(self._plan, self._report, self._tensors)

    def _read(self, message: pb.ConvolveChunkedResponse) -> None:
        if message.HasField("result") != (self._plan is None):
            raise ValueError("its result must be in its first message alone")
        if message.HasField("result"):
            self._plan = message.result.plan.SerializeToString()
            self._tensors = self._made(headers(self._plan))
            self._filling = Filling(self._tensors)
        if message.HasField("report"):
            self._report = plan_codec.report_from_proto(message.report)

    def _made(self, planned: Sequence[Tensor]) -> list[Array]:
        known = self._request.described.answer
        if planned != known:
            raise ValueError(f"its tensors would be {planned}, not {known}")
        if self._request.out:
            return [self._request.out.array]
        return [np.empty(shape, dtypes.TABLE[dtype].numpy) for dtype, shape in known]
