"""A service of bytes with a method of each type, its calls and its handlers, for tests of what surrounds handlers."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import TypeAlias

    from google.protobuf.descriptor import ServiceDescriptor

    Channel: TypeAlias = Any  # grpc.aio.Channel cannot say which messages its calls take
    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    Act: TypeAlias = Callable[[Context], Awaitable[None]]

HANDLERS: dict[str, Any] = {
    "unary": grpc.unary_unary_rpc_method_handler,
    "client_stream": grpc.stream_unary_rpc_method_handler,
    "server_stream": grpc.unary_stream_rpc_method_handler,
    "bidi_stream": grpc.stream_stream_rpc_method_handler,
}
KINDS = tuple(HANDLERS)


def described() -> ServiceDescriptor:
    """The service test.Echo: a method for each type, called like its type, and `missing`, which nobody serves."""
    file = FileDescriptorProto(name="echo.proto", package="test", syntax="proto3")
    file.message_type.add(name="Any")
    service = file.service.add(name="Echo")
    for name in (*KINDS, "missing"):
        method = service.method.add(name=name, input_type=".test.Any", output_type=".test.Any")
        method.client_streaming = name in {"client_stream", "bidi_stream"}
        method.server_streaming = name in {"server_stream", "bidi_stream"}
    pool = DescriptorPool()
    pool.Add(file)
    return pool.FindServiceByName("test.Echo")


def handler(behaviours: dict[str, object]) -> grpc.GenericRpcHandler:
    """test.Echo with these behaviours."""
    table = {kind: HANDLERS[kind](behaviour) for kind, behaviour in behaviours.items()}
    return grpc.method_handlers_generic_handler("test.Echo", table)


def call(channel: Channel, kind: str, timeout: float | None = None) -> Any:  # noqa: ANN401  # the four types of calls
    """A call with one message, or three where the caller streams."""
    path, messages = f"/test.Echo/{kind}", [b"a", b"b", b"c"]
    if kind == "unary":
        return channel.unary_unary(path)(b"a", timeout=timeout)
    if kind == "client_stream":
        return channel.stream_unary(path)(messages, timeout=timeout)
    if kind == "server_stream":
        return channel.unary_stream(path)(b"a", timeout=timeout)
    return channel.stream_stream(path)(messages, timeout=timeout)


async def finish(rpc: Any) -> grpc.StatusCode:  # noqa: ANN401  # the four types of calls
    """The code that the caller sees in the end."""
    with suppress(grpc.RpcError, asyncio.CancelledError):
        if isinstance(rpc, grpc.aio.UnaryUnaryCall | grpc.aio.StreamUnaryCall):
            await rpc
        else:
            _ = [message async for message in rpc]
    code: grpc.StatusCode = await rpc.code()
    return code


async def take(request: bytes | AsyncIterator[bytes]) -> None:
    """Reads all that comes. gRPC's asyncio fails a call with INTERNAL that still writes when its answer is there."""
    if not isinstance(request, bytes):
        _ = [message async for message in request]


def doing(kind: str, act: Act) -> object:
    """A behaviour that takes all messages, acts, and answers; one that streams does so before and after."""

    async def answer(request: bytes | AsyncIterator[bytes], context: Context) -> bytes:
        await take(request)
        await act(context)
        return b"answer"

    async def answers(request: bytes | AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        await take(request)
        yield b"first"
        await act(context)
        yield b"second"

    return answer if kind in {"unary", "client_stream"} else answers
