"""A real server before a real server: it passes calls on, and refuses those that it is told to refuse."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import grpc
from grpc_status import rpc_status
from tests.client.answering_server import KINDS, handler, serving

from convolver.core.errors import ConvolverError
from convolver.core.status import to_status
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import status_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator


class Arrival(NamedTuple):
    """When a request came (of time.monotonic), and whose it is by its metadata."""

    time: float
    caller: str | None


class Refusals(grpc.GenericRpcHandler):
    """Passes all calls on to `channel`, but refuses the next `left` of them, except Hold, with `error`; on
    ConvolveStream each request. `arrivals` are by method.
    """

    def __init__(self, channel: grpc.Channel) -> None:
        self.error: ConvolverError = ConvolverError("nothing is refused")
        self.left = 0
        self.arrivals: dict[str, list[Arrival]] = defaultdict(list)
        self._channel, self._lock = channel, threading.Lock()

    def refuse(self, error: ConvolverError, count: int) -> None:
        """From now on."""
        self.error, self.left = error, count
        self.arrivals.clear()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401 - gRPC's handlers are untyped
        path = handler_call_details.method
        method = path.rpartition("/")[2]
        caller = cast("str | None", dict(handler_call_details.invocation_metadata).get("convolver-client"))
        if method == "ConvolveStream":
            return handler(method, lambda requests, _: self._streamed(path, requests, caller))
        passed_on = getattr(self._channel, KINDS.get(method, "unary_unary"))(path)

        def behaviour(request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 - a message or many
            if self._is_refused(method, caller):
                context.abort_with_status(rpc_status.to_status(to_status(self.error)))
            try:
                return passed_on(request)
            except grpc.RpcError as failure:
                return context.abort_with_status(
                    rpc_status.to_status(cast("Any", rpc_status.from_call(cast("Any", failure))))
                )

        return handler(method, behaviour)

    def _is_refused(self, method: str, caller: str | None) -> bool:
        with self._lock:
            self.arrivals[method].append(Arrival(time.monotonic(), caller))
            self.left -= method != "Hold"
            return method != "Hold" and self.left >= 0

    def _streamed(self, path: str, requests: Iterator[bytes], caller: str | None) -> Iterator[bytes]:
        answers = SimpleQueue[bytes | None]()

        def taken() -> Iterator[bytes]:
            with suppress(grpc.RpcError):  # the caller has left
                for message in requests:
                    if self._is_refused("ConvolveStream", caller):
                        number = pb.ConvolveStreamRequest.FromString(message).id
                        status = status_pb2.Status.FromString(to_status(self.error).SerializeToString())
                        answers.put(pb.ConvolveStreamResponse(id=number, status=status).SerializeToString())
                    else:
                        yield message

        def read() -> None:
            stream: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(path)
            with suppress(grpc.RpcError):  # likewise
                for answer in stream(taken()):
                    answers.put(answer)
            answers.put(None)

        threading.Thread(target=read, daemon=True).start()
        yield from iter(answers.get, None)


@contextmanager
def before(address: str) -> Iterator[tuple[str, Refusals]]:
    """The address of one before that one, and what tells it to refuse."""
    with grpc.insecure_channel(address) as channel:
        refusals = Refusals(channel)
        with serving(refusals, threads=16) as before:
            yield before, refusals
