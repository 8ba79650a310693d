"""What leaves the server when a handler raises: our errors with their details, of any other a reference alone."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import grpc
import pytest
from grpc_status import rpc_status
from tests.contract import refusal
from tests.server.echo import KINDS, call, described, doing, handler, take
from tests.wait import until_in_loop

from convolver.core import errors
from convolver.core.status import from_status
from convolver.server._errors_interceptor import ErrorsInterceptor
from convolver.server._metrics_interceptor import MetricsInterceptor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from google.rpc import status_pb2
    from tests.server.echo import Act

    Behaviour = Any  # a handler of any type
    Context = grpc.aio.ServicerContext[bytes, bytes]

MOST_BYTES = 3072
CAUSE = "torch::Error at /home/someone/secret.cpp"


@asynccontextmanager
async def serving(behaviour: Behaviour) -> AsyncIterator[Any]:
    """A unary call that a real server with the interceptor serves."""
    server = grpc.aio.server(interceptors=[ErrorsInterceptor()])
    server.add_generic_rpc_handlers((handler({"unary": behaviour}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made: Any = channel.unary_unary("/test.Echo/unary")
        yield made
    await server.stop(None)


def failure_of(error: BaseException) -> grpc.aio.AioRpcError:
    """What a caller sees of a handler that raises this."""

    async def raising(_request: bytes, _context: Context) -> bytes:
        raise error

    async def call() -> grpc.aio.AioRpcError:
        async with serving(raising) as made:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await made(b"", timeout=30)
            return caught.value

    return asyncio.run(call())


def status_of(failure: grpc.aio.AioRpcError) -> status_pb2.Status:
    status: status_pb2.Status | None = rpc_status.from_call(cast("grpc.Call", failure))
    assert status is not None
    return status


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log calls failures."""
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("failure")]


def test_where_there_is_no_memory_the_caller_may_come_again_and_the_log_has_the_cause(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = refusal(cast("grpc.RpcError", failure_of(MemoryError(CAUSE))))
    assert (said.code, said.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
    assert CAUSE not in said.text
    assert [record.levelno for record in caplog.records if CAUSE in record.getMessage()] == [logging.ERROR]


@pytest.mark.parametrize("error", [RuntimeError(CAUSE), OSError(CAUSE), KeyError(CAUSE)], ids=repr)
def test_an_unexpected_exception_is_internal_with_a_reference_that_the_log_has(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    said = refusal(cast("grpc.RpcError", failure_of(error)))
    assert (said.code, said.info.reason) == (grpc.StatusCode.INTERNAL, "BACKEND_FAILURE")
    reference = said.info.metadata["reference"]
    assert len(reference) == 16
    assert reference in said.text
    assert failures(caplog) == [f"failure {reference}"]
    (record,) = [record for record in caplog.records if reference in record.getMessage()]
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_nothing_of_an_unexpected_exception_travels() -> None:
    failure = failure_of(RuntimeError(CAUSE))
    wire = [failure.details() or "", *(str(entry) for entry in failure.trailing_metadata())]
    assert not [text for text in wire if "secret" in text or "RuntimeError" in text or "Traceback" in text]


def test_two_failures_have_two_references() -> None:
    references = {status_of(failure_of(RuntimeError())).message for _ in range(2)}
    assert len(references) == 2


ERRORS = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidConvolution("stride[1] is 0; it must be at least 1", "stride[1]"),
    grpc.StatusCode.UNIMPLEMENTED: errors.Unsupported("torch:cpu does not compute int8"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitExceeded("too much", "bytes", 10, 2**70, "--max-request-bytes"),
    grpc.StatusCode.NOT_FOUND: errors.UnknownLayer("no such layer", "sha256:00"),
    grpc.StatusCode.OUT_OF_RANGE: errors.IntegerOverflow("output[0, 0] is 300, which uint8 (0 to 255) does not hold"),
    grpc.StatusCode.INTERNAL: errors.BackendFailure("the server failed", "abc"),
}


@pytest.mark.parametrize("code", ERRORS, ids=lambda code: code.name)
def test_an_error_of_ours_arrives_as_it_was_raised(code: grpc.StatusCode) -> None:
    error = ERRORS[code]
    failure = failure_of(error)
    rebuilt = from_status(status_of(failure))
    assert failure.code() == code
    assert (type(rebuilt), str(rebuilt), vars(rebuilt)) == (type(error), str(error), vars(error))


def test_overload_says_when_to_come_again() -> None:
    failure = failure_of(errors.Overloaded("the queue is full", retry_after=1.25))
    rebuilt = from_status(status_of(failure))
    assert failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(rebuilt, errors.Overloaded)
    assert rebuilt.retry_after == 1.25


LONG = [
    errors.InvalidConvolution("x" * 9000, "y" * 9000),
    errors.InvalidConvolution("\N{GRINNING FACE}" * 9000, "\N{GRINNING FACE}" * 9000),
    errors.LimitExceeded("\N{GRINNING FACE}" * 9000, "subject" * 100, 10**90, 10**90, "--setting" * 100),
    errors.UnknownLayer("\n" * 9000, "sha256:" + "\N{GRINNING FACE}" * 9000),
]


@pytest.mark.parametrize("error", LONG, ids=lambda error: type(error).__name__)
def test_a_long_text_still_arrives_in_less_than_3_kilobytes(error: errors.ConvolverError) -> None:
    status = status_of(failure_of(error))
    rebuilt = from_status(status)
    assert type(rebuilt) is type(error)
    assert rebuilt.message[:50] == error.message[:50]
    assert status.ByteSize() < MOST_BYTES


def test_a_handler_may_abort_by_itself_which_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def aborting(_request: bytes, context: Context) -> bytes:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "by itself")
        return b""

    async def call() -> grpc.aio.AioRpcError:
        async with serving(aborting) as made:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await made(b"", timeout=30)
            return caught.value

    failure = asyncio.run(call())
    assert (failure.code(), failure.details()) == (grpc.StatusCode.ALREADY_EXISTS, "by itself")
    assert not failures(caplog)


def test_a_caller_that_leaves_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def whole() -> None:
        started, ended = asyncio.Event(), asyncio.Event()

        async def waiting(_request: bytes, _context: Context) -> bytes:
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()
            return b""

        async with serving(waiting) as made:
            rpc = made(b"", timeout=30)
            task = asyncio.ensure_future(rpc)
            await started.wait()
            rpc.cancel()
            await until_in_loop(ended.is_set, "the handler to be cancelled")
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(whole())
    assert not failures(caplog)


def received(kind: str, behaviour: Behaviour, *interceptors: grpc.aio.ServerInterceptor) -> list[bytes]:
    """The answers of a call of this kind. Raises AioRpcError where it fails."""

    async def whole() -> list[bytes]:
        server = grpc.aio.server(interceptors=[*interceptors, ErrorsInterceptor()])
        server.add_generic_rpc_handlers((handler({kind: behaviour}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                rpc = call(channel, kind, timeout=30)
                return [message async for message in rpc] if kind in STREAMING else [await rpc]
        finally:
            await server.stop(None)

    return asyncio.run(whole())


STREAMING = {"server_stream", "bidi_stream"}


def raising(error: Exception) -> Act:
    async def act(_: Context) -> None:
        raise error

    return act


@pytest.mark.parametrize(
    "interceptors", [(), (MetricsInterceptor([described()]),)], ids=["alone", "within the metrics"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_call_gets_an_error_of_ours(kind: str, interceptors: Sequence[MetricsInterceptor]) -> None:
    error = errors.LimitExceeded("too much", "bytes", 10, 11, "--layer-budget")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        received(kind, doing(kind, raising(error)), *interceptors)
    rebuilt = from_status(status_of(caught.value))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (type(rebuilt), vars(rebuilt)) == (type(error), vars(error))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_call_gets_no_more_than_a_reference_of_any_other(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        received(kind, doing(kind, raising(RuntimeError(CAUSE))))
    said = refusal(cast("grpc.RpcError", caught.value))
    assert (said.code, said.info.reason) == (grpc.StatusCode.INTERNAL, "BACKEND_FAILURE")
    assert failures(caplog) == [f"failure {said.info.metadata['reference']}"]
    assert "secret" not in said.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_call_may_abort_by_itself(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def abort(context: Context) -> None:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "by itself")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        received(kind, doing(kind, abort))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.ALREADY_EXISTS, "by itself")
    assert not failures(caplog)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_call_passes_as_it_is(kind: str) -> None:
    async def nothing(_: Context) -> None:
        pass

    assert received(kind, doing(kind, nothing)) == ([b"first", b"second"] if kind in STREAMING else [b"answer"])


@pytest.mark.parametrize("kind", sorted(STREAMING))
def test_a_coroutine_that_writes_by_itself_is_answered_likewise(kind: str) -> None:
    async def writing(request: bytes | AsyncIterator[bytes], context: Context) -> None:
        await take(request)
        await context.write(b"one")

    async def failing(request: bytes | AsyncIterator[bytes], context: Context) -> None:
        await writing(request, context)
        raise errors.UnknownLayer("no such layer", "sha256:00")

    assert received(kind, writing) == [b"one"]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        received(kind, failing)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
