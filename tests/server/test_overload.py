"""A server whose only thread is busy and whose queue is full: who is refused, who is not, and what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.contract import ANSWER, SERVICE, call, convolution, good_request, output, request
from tests.server import chunked_calls
from tests.server.busy_calls import (
    IN_FLIGHT,
    MEMORY,
    SAVED_IN_QUEUE,
    SAVED_RUNNING,
    Refusal,
    begin,
    busy,
    is_at_rest,
    long,
    long_header,
    macs,
    refusal,
    refusal_of,
    short,
)
from tests.server.layer_calls import metric
from tests.server.stream_calls import OpenStream, item, ordinary, status
from tests.wait import until

from convolver.v1 import convolution_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

SHORT_MACS = 599 * 599 * 4
MIB = 2**20
LARGE = 2_500_000
"""Elements of an answer that no connection takes before its reader does."""


@pytest.fixture(scope="module")
def narrow(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server of one thread, which batches nothing, and whose queue is full with one long request of a caller."""
    flags = (
        "--threads=1",
        "--max-batch=1",
        "--queue-seconds=3",
        "--memory-budget=1GiB",
        "--max-request-bytes=512MiB",
    )
    return serve("--backend=reference", *flags)


@pytest.fixture
def channel(narrow: RunningServer) -> Iterator[grpc.Channel]:
    """To that server, which holds nothing after each test."""
    with grpc.insecure_channel(narrow.address) as channel:
        yield channel
        until(lambda: is_at_rest(narrow), "nothing to be left")


def unary(channel: grpc.Channel) -> Refusal:
    return refusal_of(begin(channel, short(), None).exception())


def streamed(channel: grpc.Channel) -> Refusal:
    with OpenStream(channel) as stream:
        stream.send(ordinary(3))
        answer = stream.next()
    assert answer.id == 3
    return refusal(status(answer))


def chunked(channel: grpc.Channel) -> Refusal:
    with chunked_calls.OpenCall(channel, chunked_calls.first(convolution())) as open_call:
        with pytest.raises(grpc.RpcError) as caught:
            open_call.next()
        return refusal_of(caught.value)


@pytest.mark.parametrize("refused", [unary, streamed, chunked])
def test_a_caller_with_too_much_waiting_is_told_when_to_come_again(
    narrow: RunningServer, channel: grpc.Channel, refused: Callable[[grpc.Channel], Refusal]
) -> None:
    series = 'convolver_refused_total{reason="OVERLOADED"}'
    before, computed = metric(narrow, series), macs(narrow)
    with busy(narrow, channel, None):
        found = refused(channel)
        assert found.reason == "OVERLOADED"
        assert "s of work are before it" in found.text
        assert "--queue-seconds" in found.text
        assert found.seconds is not None
        assert 0.05 <= found.seconds <= 5.0
        assert metric(narrow, series) == before + 1
        assert metric(narrow, IN_FLIGHT) == 1
    assert macs(narrow) == computed


def test_another_caller_is_admitted_then_and_answered_next(narrow: RunningServer, channel: grpc.Channel) -> None:
    computed = macs(narrow)
    with busy(narrow, channel) as heavy:
        light = begin(channel, short(), "light")
        until(lambda: metric(narrow, IN_FLIGHT) == 2, "the light one to wait")
        assert not light.done()
        assert refusal_of(begin(channel, short(), "heavy").exception()).reason == "OVERLOADED"
        heavy.cancel()
        np.testing.assert_array_equal(output(light.result()), np.full((1, 1, 599, 599), 4, np.float32))
    assert macs(narrow) == computed + SHORT_MACS


def test_what_computes_nothing_is_answered_meanwhile(narrow: RunningServer, channel: grpc.Channel) -> None:
    with busy(narrow, channel) as heavy:
        health: Any = HealthStub(channel)  # whose stubs lack its methods
        checked = health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=60)
        assert checked.status == health_pb2.HealthCheckResponse.SERVING
        plan = pb.PlanRequest(convolution=long_header()).SerializeToString()
        assert pb.PlanResponse.FromString(call(channel, plan, "Plan")).plan.macs > SHORT_MACS
        assert pb.GetInfoResponse.FromString(call(channel, b"", "GetInfo")).versions["convolver"]
        assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()
        np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)  # on the event loop
        assert not heavy.done()


def test_what_never_fits_is_not_to_come_again(narrow: RunningServer, channel: grpc.Channel) -> None:
    huge = request(convolution((1, 1, 20_000, 20_000)))
    with busy(narrow, channel):
        for caller in ("heavy", "light"):
            found = refusal_of(begin(channel, huge, caller).exception())
            assert (found.reason, found.seconds) == ("LIMIT_EXCEEDED", None)


def test_a_deadline_that_would_be_missed_is_refused_before_it_is(narrow: RunningServer, channel: grpc.Channel) -> None:
    begin(channel, short(), "light").result()  # from which the server learns how fast it is
    with busy(narrow, channel, message=long(priority=convolution_pb2.PRIORITY_BULK)):
        # time enough for its bytes to arrive, and far too little for the some 20 s of both
        found = refusal_of(begin(channel, long(), "light", timeout=5.0).exception())
        assert found.reason == "OVERLOADED"
        assert "by estimate, and its deadline is in" in found.text
        assert metric(narrow, IN_FLIGHT) == 1


def test_what_is_cancelled_in_the_queue_is_not_computed(narrow: RunningServer, channel: grpc.Channel) -> None:
    computed, saved = macs(narrow), metric(narrow, SAVED_IN_QUEUE)
    with busy(narrow, channel) as heavy:
        waiting = [begin(channel, short(), f"{number}") for number in range(10)]
        until(lambda: metric(narrow, IN_FLIGHT) == 11, "all to wait")
        for each in waiting:
            each.cancel()
        until(lambda: metric(narrow, IN_FLIGHT) == 1, "them to leave")
        assert metric(narrow, SAVED_IN_QUEUE) > saved
        assert not heavy.done()
    assert macs(narrow) == computed


def test_what_is_cancelled_while_it_runs_is_stopped(narrow: RunningServer, channel: grpc.Channel) -> None:
    computed, saved = macs(narrow), metric(narrow, SAVED_RUNNING)
    with busy(narrow, channel) as heavy:
        heavy.cancel()
        until(lambda: is_at_rest(narrow), "it to stop")
    assert metric(narrow, SAVED_RUNNING) > saved
    assert macs(narrow) == computed


def test_one_request_does_not_wait_for_fifty_of_another_caller(narrow: RunningServer, channel: grpc.Channel) -> None:
    order: list[grpc.Future[bytes]] = []
    with busy(narrow, channel) as heavy:
        many = [begin(channel, short(), "many") for _ in range(50)]
        until(lambda: metric(narrow, IN_FLIGHT) == 51, "the fifty to wait")
        calls = [*many, begin(channel, short(), "one")]
        until(lambda: metric(narrow, IN_FLIGHT) == 52, "the one to wait")
        for each in calls:
            each.add_done_callback(order.append)
        heavy.cancel()
        for each in calls:
            each.result()
    until(lambda: len(order) == 51, "all to be told")
    assert order.index(calls[-1]) < 10


def large(number: int) -> tuple[bytes, bytes]:
    """Some bytes that ask for ten million, in a stream and as a call of its own."""
    header = convolution((1, 1, 1), (1, 1, 1))
    padding = header.layers[0].definition.parameters.explicit_padding
    padding.begin.append(0)
    padding.end.append(LARGE - 1)
    data = [np.ones(1, np.float32)] * 2
    return item(number, header, *data), request(header, *data)


@pytest.mark.parametrize("ending", ["read", "cancelled"])
def test_an_answer_that_nobody_reads_is_held_until_somebody_does_or_leaves(narrow: RunningServer, ending: str) -> None:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(narrow.address, options) as channel, OpenStream(channel) as stream:
        stream.send(*(large(number)[0] for number in range(3)))
        until(lambda: metric(narrow, IN_FLIGHT) == 3 and metric(narrow, MEMORY) < 31 * MIB, "three answers")
        assert metric(narrow, MEMORY) >= 3 * 4 * LARGE
        if ending == "read":
            assert {stream.next().id for _ in range(3)} == {0, 1, 2}
            until(lambda: is_at_rest(narrow), "nothing to be left")
    until(lambda: is_at_rest(narrow), "nothing to be left")


def test_an_answer_that_the_caller_cannot_take_is_let_go_of(narrow: RunningServer, channel: grpc.Channel) -> None:
    failure: Any = begin(channel, large(0)[1], "light").exception()
    assert failure.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # its own, of 4 MiB
    until(lambda: is_at_rest(narrow), "nothing to be left")
