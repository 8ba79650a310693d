"""A server in this process that answers as it is told."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

KINDS = {
    "ConvolveChunked": "stream_stream",
    "ConvolveStream": "stream_stream",
    "Hold": "stream_stream",
    "PutLayer": "stream_unary",
}
"""Of the methods that are not unary_unary: whether requests and answers are many."""

Behaviour = Callable[[Any, grpc.ServicerContext], Any]


def handler(method: str, behaviour: Behaviour) -> Any:  # noqa: ANN401 - gRPC's handlers are untyped
    """gRPC's, which answers that method so."""
    return getattr(grpc, f"{KINDS.get(method, 'unary_unary')}_rpc_method_handler")(behaviour)


class _Answers(grpc.GenericRpcHandler):
    """Those of the methods of these names, of whichever service."""

    def __init__(self, behaviours: dict[str, Behaviour]) -> None:
        self._behaviours = behaviours

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401 - gRPC's handlers are untyped
        method = handler_call_details.method.rpartition("/")[2]
        return handler(method, self._behaviours[method]) if method in self._behaviours else None


def answering(**behaviours: Behaviour) -> AbstractContextManager[str]:
    """The address of one that answers these methods so, and no others."""
    return serving(_Answers(behaviours))


@contextmanager
def serving(handler: grpc.GenericRpcHandler, threads: int = 4) -> Iterator[str]:
    """The address of one with this handler."""
    with ThreadPoolExecutor(threads) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()
