"""A gRPC service that answers what it is sent, to know what the way alone costs.

`python -m benchmarks.echo` serves on a free port of 127.0.0.1, prints it, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import Callable

METHOD = "/benchmarks.Echo/Echo"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def serve() -> None:
    """Until standard input ends."""
    server = grpc.aio.server(options=OPTIONS)
    service, name = METHOD.lstrip("/").split("/")
    handler: Any = grpc.unary_unary_rpc_method_handler(echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


async def echo(request: bytes, _: object) -> bytes:
    """The same bytes."""
    return request


def caller(port: int) -> Callable[[bytes], bytes]:
    """A client of that service."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
    method: Any = channel.unary_unary(METHOD)  # whose type the stubs take from serialisers, and there are none
    call: Callable[[bytes], bytes] = method
    return call


if __name__ == "__main__":
    asyncio.run(serve())
