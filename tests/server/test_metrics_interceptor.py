from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tests.server.echo import KINDS, call, described, doing, finish, handler

from convolver.server import metrics
from convolver.server._metrics_interceptor import CODES, MetricsInterceptor

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.server.echo import Act, Channel, Context

    Counts = dict[tuple[str, ...], float]

LABELS = ("grpc_type", "grpc_service", "grpc_method", "grpc_code")
ECHO = described()
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]


def counts() -> Counts:
    """What is counted of RPCs so far, by the name (without what all have in common) and the labels."""
    samples = [sample for family in metrics.REGISTRY.collect() for sample in family.samples]
    return {
        (
            sample.name.removeprefix("grpc_server_"),
            *(sample.labels[name] for name in LABELS if name in sample.labels),
        ): sample.value
        for sample in samples
        if sample.name.startswith("grpc_server_") and not sample.name.endswith(("_bucket", "_sum"))
    }


def since(before: Counts) -> Counts:
    """What was counted after `before`."""
    return {
        series: value - before.get(series, 0) for series, value in counts().items() if value != before.get(series, 0)
    }


def expected(kind: str, code: str, received: int, sent: int, *, service: str = "test.Echo", method: str = "") -> Counts:
    """One RPC that ended with this code."""
    labels = (kind, service, method or kind)
    everything = {
        ("started_total", *labels): 1,
        ("handled_total", *labels, code): 1,
        ("handling_seconds_count", *labels): 1,
        ("msg_received_total", *labels): received,
        ("msg_sent_total", *labels): sent,
    }
    return {series: value for series, value in everything.items() if value}


def counted(caller: Callable[[Channel], Awaitable[object]], **behaviours: object) -> Counts:
    """What is counted while `caller` calls a server of test.Echo that has these behaviours."""
    before = counts()

    async def serve_and_call() -> None:
        server = grpc.aio.server(interceptors=[MetricsInterceptor([ECHO, HEALTH])])
        server.add_generic_rpc_handlers((handler(behaviours),))
        health_pb2_grpc.add_HealthServicer_to_server(health.aio.HealthServicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(30):
            await channel.channel_ready()
            await caller(channel)
            while ended("started", since(before)) != ended("handled", since(before)):  # noqa: ASYNC110  # nobody is told
                await asyncio.sleep(0)  # a caller has its answer before the server has done with the call
        await server.stop(None)

    asyncio.run(serve_and_call())
    return since(before)


def ended(what: str, counts: Counts) -> float:
    return sum(value for series, value in counts.items() if series[0] == f"{what}_total")


async def nothing(_: Context) -> None:
    pass


async def aborting(context: Context) -> None:
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "stride is 0")


async def raising(context: Context) -> None:
    raise KeyError(context)


async def setting_a_code(context: Context) -> None:
    context.set_code(grpc.StatusCode.NOT_FOUND)


async def setting_a_code_and_raising(context: Context) -> None:
    context.set_code(grpc.StatusCode.DATA_LOSS)
    raise KeyError(context)


async def forever(_: Context) -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("kind", "received", "sent"),
    [("unary", 1, 1), ("client_stream", 3, 1), ("server_stream", 1, 2), ("bidi_stream", 3, 2)],
)
def test_a_call_that_succeeds_is_counted_with_its_messages(kind: str, received: int, sent: int) -> None:
    found = counted(lambda channel: finish(call(channel, kind)), **{kind: doing(kind, nothing)})
    assert found == expected(kind, "OK", received, sent)


@pytest.mark.parametrize(
    ("act", "code"),
    [
        (aborting, "InvalidArgument"),
        (raising, "Unknown"),
        (setting_a_code, "NotFound"),
        (setting_a_code_and_raising, "DataLoss"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_fails_is_counted_under_the_code_that_the_caller_sees(kind: str, act: Act, code: str) -> None:
    seen = []

    async def caller(channel: Channel) -> None:
        seen.append(CODES[await finish(call(channel, kind))])

    found = counted(caller, **{kind: doing(kind, act)})
    assert seen == [code]
    assert found["handled_total", kind, "test.Echo", kind, code] == 1
    assert ended("handled", found) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_its_caller_cancels_is_canceled(kind: str) -> None:
    reached = asyncio.Event()

    async def act(context: Context) -> None:
        reached.set()
        await forever(context)

    async def caller(channel: Channel) -> None:
        rpc = call(channel, kind)
        await reached.wait()
        rpc.cancel()
        assert await finish(rpc) is grpc.StatusCode.CANCELLED

    found = counted(caller, **{kind: doing(kind, act)})
    assert found["handled_total", kind, "test.Echo", kind, "Canceled"] == 1
    assert ended("handled", found) == 1


def test_a_call_that_runs_out_of_time_is_past_its_deadline() -> None:
    async def caller(channel: Channel) -> None:
        # all at once, with time enough to reach their handlers: one that does not is not counted
        codes = await asyncio.gather(*(finish(call(channel, kind, timeout=4.0)) for kind in KINDS))
        assert codes == [grpc.StatusCode.DEADLINE_EXCEEDED] * len(KINDS)

    found = counted(caller, **{kind: doing(kind, forever) for kind in KINDS})
    assert [found["handled_total", kind, "test.Echo", kind, "DeadlineExceeded"] for kind in KINDS] == [1] * len(KINDS)
    assert ended("handled", found) == len(KINDS)


def test_a_call_cancelled_long_before_its_deadline_is_canceled() -> None:
    reached = asyncio.Event()

    async def act(context: Context) -> None:
        reached.set()
        await forever(context)

    async def caller(channel: Channel) -> None:
        rpc = call(channel, "unary", timeout=60.0)
        await reached.wait()
        rpc.cancel()
        await finish(rpc)

    assert counted(caller, unary=doing("unary", act))["handled_total", "unary", "test.Echo", "unary", "Canceled"] == 1


def test_a_generator_is_closed_before_its_cancelled_call_is_counted() -> None:
    reached, counted_by_then = asyncio.Event(), []
    before = counts()

    async def behaviour(_: bytes, __: Context) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"tick"
                reached.set()
        finally:
            counted_by_then.append(ended("handled", since(before)))

    async def caller(channel: Channel) -> None:
        rpc = call(channel, "server_stream")
        await reached.wait()
        rpc.cancel()
        await finish(rpc)

    assert ended("handled", counted(caller, server_stream=behaviour)) == 1
    assert counted_by_then == [0]


def test_messages_are_counted_for_handlers_that_read_and_write_by_themselves() -> None:
    async def behaviour(_: object, context: Context) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)

    found = counted(lambda channel: finish(call(channel, "bidi_stream")), bidi_stream=behaviour)
    assert found == expected("bidi_stream", "OK", 3, 3)


def test_details_of_an_abort_arrive_at_the_caller() -> None:
    async def caller(channel: Channel) -> None:
        rpc = call(channel, "unary")
        await finish(rpc)
        assert await rpc.details() == "stride is 0"

    counted(caller, unary=doing("unary", aborting))


def test_the_health_service_works_and_is_counted() -> None:
    async def caller(channel: Channel) -> None:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())  # type: ignore[attr-defined]  # its stubs know the servicer alone
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()

    service = {"service": "grpc.health.v1.Health", "method": "Watch"}
    assert counted(caller) == expected("server_stream", "Canceled", 1, 1, **service)


def test_a_described_method_without_a_handler_is_unimplemented_under_its_name() -> None:
    found = counted(lambda channel: finish(channel.unary_unary("/test.Echo/missing")(b"")))
    labels = ("unary", "test.Echo", "missing")
    assert found == {("started_total", *labels): 1, ("handled_total", *labels, "Unimplemented"): 1}


def test_paths_that_callers_make_up_share_one_series() -> None:
    async def caller(channel: Channel) -> None:
        for path in ("/test.Echo/made-up", "/evil.One/X", "/evil.Two/Y", "/", "//", "/test.Echo/unary/x"):
            assert await finish(channel.unary_unary(path)(b"")) is grpc.StatusCode.UNIMPLEMENTED

    unknown = ("unknown", "unknown", "unknown")
    assert counted(caller) == {("started_total", *unknown): 6, ("handled_total", *unknown, "Unimplemented"): 6}


def test_every_method_is_shown_with_every_code_before_its_first_call() -> None:
    MetricsInterceptor([ECHO, HEALTH])
    shown = set(counts())
    for kind in KINDS:
        assert ("started_total", kind, "test.Echo", kind) in shown
        assert {("handled_total", kind, "test.Echo", kind, code) for code in CODES.values()} <= shown


def test_codes_are_spelt_as_go_does() -> None:
    assert list(CODES.values()) == [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ]
