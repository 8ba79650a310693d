"""Counts every RPC under go-grpc-middleware's names and labels, so that its dashboards and alerts fit this server."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc

from convolver.server import metrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator

    from google._upb._message import ServiceDescriptor as BareServiceDescriptor
    from google.protobuf.descriptor import ServiceDescriptor

    Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]
    Service: TypeAlias = ServiceDescriptor | BareServiceDescriptor  # one class, named differently by two sets of stubs

Result = TypeVar("Result")

CODES = {code: code.name.title().replace("_", "") for code in grpc.StatusCode} | {
    grpc.StatusCode.OK: "OK",
    grpc.StatusCode.CANCELLED: "Canceled",  # as Go spells it, and so every dashboard of these metrics
}
UNKNOWN = ("unknown", "unknown", "unknown")
"""The labels of all methods that the server does not know: callers can make up any number of them."""


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Counts the RPCs of `services`, with zeros from the start. First in the list, it sees what callers see.

    Handlers are coroutines or async generators. A call that gRPC ends before its handler starts is not counted: its
    message was over the limit, or its caller left at once.
    """

    def __init__(self, services: Iterable[Service]) -> None:
        labels = [labels for service in services for labels in _labels(service)]
        self._series = {f"/{service}/{method}": _Series(kind, service, method) for kind, service, method in labels}
        self._unknown = _Series(*UNKNOWN)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The call's handler, counted. Where there is none gRPC answers UNIMPLEMENTED, which is counted here."""
        handler = await continuation(handler_call_details)
        series = self._series.get(handler_call_details.method, self._unknown)
        if handler is None:
            series.started.inc()
            series.handled[grpc.StatusCode.UNIMPLEMENTED].inc()
            return None
        return _counted(handler, series)


class _Series:
    """The metrics of one method, looked up once."""

    def __init__(self, *labels: str) -> None:
        self.started = metrics.STARTED.labels(*labels)
        self.received = metrics.MESSAGES_RECEIVED.labels(*labels)
        self.sent = metrics.MESSAGES_SENT.labels(*labels)
        self.seconds = metrics.HANDLING_SECONDS.labels(*labels)
        self.handled = {code: metrics.HANDLED.labels(*labels, name) for code, name in CODES.items()}


class _Context:
    """A call's context whose `read` and `write` count, and cannot be cancelled, only their waiters: gRPC lets go of the
    message of a cancelled one never, and never ends a call one of whose writes was cancelled.
    """

    def __init__(self, context: Context, series: _Series) -> None:
        self._context, self._series = context, series

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401  # all the rest is the context's own
        return getattr(self._context, name)

    async def read(self) -> object:
        return await _whole(self._read())

    async def write(self, message: object) -> None:
        await _whole(self._write(message))

    async def _read(self) -> object:
        message = await self._context.read()
        if message is not grpc.aio.EOF:
            self._series.received.inc()
        return message

    async def _write(self, message: object) -> None:
        await self._context.write(message)
        self._series.sent.inc()


async def _whole(operation: Coroutine[Any, Any, Result]) -> Result:
    """What it gives; it goes on where who waits for it is cancelled."""
    task = asyncio.create_task(operation)
    task.add_done_callback(_unheard)
    try:
        await asyncio.wait([task])
        return task.result()
    finally:
        del task  # whose error refers to this frame


def _unheard(task: asyncio.Task[Any]) -> None:
    """Its error is known to who waits for it; else to nobody, and the call has ended."""
    if not task.cancelled():
        task.exception()


class _Requests:
    """A caller's messages. gRPC's own iterator keeps each until the next one comes, which may be never."""

    def __init__(self, context: _Context) -> None:
        self._context = context

    def __aiter__(self) -> AsyncIterator[object]:
        return self

    async def __anext__(self) -> object:
        message = await self._context.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


def _labels(service: Service) -> Iterator[tuple[str, str, str]]:
    kinds = {
        (False, False): "unary",
        (True, False): "client_stream",
        (False, True): "server_stream",
        (True, True): "bidi_stream",
    }
    for method in service.methods:
        yield kinds[method.client_streaming, method.server_streaming], service.full_name, method.name


def _counted(handler: Handler, series: _Series) -> Handler:
    behaviour: Any  # one of four types, which its two flags tell apart
    make, behaviour = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }[handler.request_streaming, handler.response_streaming]

    async def run(request: Any, context: Context) -> object:  # noqa: ANN401  # a message, or an iterator of messages
        with _observed(series, context):
            counting = _Context(context, series)
            if handler.request_streaming:
                request = _Requests(counting)
            else:
                series.received.inc()
            if handler.response_streaming:
                await write_all(behaviour(request, counting), counting)
                return None
            response = await behaviour(request, counting)
            series.sent.inc()
            return response

    return make(run, handler.request_deserializer, handler.response_serializer)


async def write_all(responses: Any, context: _Context) -> None:  # noqa: ANN401  # what either kind of handler returns
    """Runs a coroutine that writes by itself, or writes what a generator yields.

    gRPC would do the latter, but leaves a cancelled call's generator to the garbage collector, and its end with it.
    """
    if not hasattr(responses, "__aiter__"):
        await responses
        return
    async with aclosing(responses):
        async for message in responses:
            await context.write(message)


@contextmanager
def _observed(series: _Series, context: Context) -> Iterator[None]:
    series.started.inc()
    start, allowed, code = time.perf_counter(), context.time_remaining(), grpc.StatusCode.UNKNOWN
    try:
        yield
        code = _status(context, grpc.StatusCode.OK)
    except asyncio.CancelledError:
        code = _why_cancelled(context, allowed)
        raise
    except BaseException:
        code = _status(context, grpc.StatusCode.UNKNOWN)
        raise
    finally:
        series.handled[code].inc()
        series.seconds.observe(time.perf_counter() - start)


def _status(context: Context, otherwise: grpc.StatusCode) -> grpc.StatusCode:
    """The code that the handler set or aborted with, if it did."""
    code = context.code()
    return otherwise if code in {None, grpc.StatusCode.OK} else code


def _why_cancelled(context: Context, allowed: float | None) -> grpc.StatusCode:
    """A caller whose deadline passes cancels, a little before ours does: grpc-timeout is rounded up, by 1% at most."""
    over = allowed is not None and context.time_remaining() <= 0.005 + 0.01 * allowed
    return grpc.StatusCode.DEADLINE_EXCEEDED if over else grpc.StatusCode.CANCELLED
