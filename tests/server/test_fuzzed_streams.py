"""Streams that nobody would write: each request is answered or refused with a reason, and the server serves on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract import ANSWER, call, good_request, output
from tests.e2e.test_fuzzed_requests import TYPED, requests
from tests.server.layer_calls import metric
from tests.server.stream_calls import RECEIVED, SENT, OpenStream, padded, quick, status
from tests.wait import until

from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.conftest import RunningServer

CODES = {code_pb2.Code.Value(code.name) for code in TYPED}
ENDS = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
TIMEOUTS = st.none() | st.sampled_from([60.0, 1e300]) | st.floats()


WINDOW, ROUNDING = 3, 1e-9
"""Requests of a stream; seconds that are none, since what is left of sums is not zero while requests are held."""


@pytest.fixture(scope="module")
def running(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server that computes no request for long."""
    limits = ("--max-work=1e7", "--max-request-bytes=16MiB", "--memory-budget=64MiB", "--max-output-elements=1e6")
    return serve(*limits, f"--stream-window={WINDOW}")


@pytest.fixture(scope="module")
def channel(running: RunningServer) -> Iterator[grpc.Channel]:
    """To that server, which answers a good call after all of them."""
    with grpc.insecure_channel(running.address) as channel:
        yield channel
        np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)
        until(lambda: metric(running, "convolver_in_flight") == 0, "nothing to be left")
    assert running.stop() == 0
    assert not [line for line in running.lines if "Traceback" in line or "never retrieved" in line]


def answers(channel: grpc.Channel, messages: Sequence[bytes]) -> tuple[list[pb.ConvolveStreamResponse], bool]:
    """All of them, and whether the call ended well; what ended it otherwise was one of our statuses."""
    got: list[pb.ConvolveStreamResponse] = []
    with OpenStream(channel) as stream:
        stream.send(*messages)
        stream.close()
        try:
            got.extend(stream)
        except grpc.RpcError:
            assert stream.call.code() in ENDS, stream.call.details()
            return got, False
    return got, True


def check_typed(answer: pb.ConvolveStreamResponse) -> None:
    """It is a result, or one of our statuses."""
    if answer.WhichOneof("outcome") == "result":
        return
    failed, info = status(answer), error_details_pb2.ErrorInfo()
    assert failed.code in CODES | {code_pb2.DEADLINE_EXCEEDED}, failed
    if failed.code != code_pb2.DEADLINE_EXCEEDED:
        assert failed.details[0].Unpack(info)
        assert info.domain == "convolver"


@st.composite
def items(draw: st.DrawFn) -> bytes:
    """A request that is or is not in order, with an id that another may have, and any timeout."""
    message = pb.ConvolveRequest.FromString(draw(requests()))
    number, timeout = draw(st.integers(0, 3) | st.just(2**64 - 1)), draw(TIMEOUTS)
    whole = pb.ConvolveStreamRequest(
        id=number, convolution=message.convolution, data=message.data, timeout_seconds=timeout
    )
    return whole.SerializeToString()


@settings(max_examples=150)
@given(messages=st.lists(items(), min_size=1, max_size=6))
def test_each_request_has_its_answer(channel: grpc.Channel, messages: list[bytes]) -> None:
    got, well = answers(channel, messages)
    assert well
    sent = Counter(pb.ConvolveStreamRequest.FromString(message).id for message in messages)
    assert Counter(answer.id for answer in got) == sent
    for answer in got:
        check_typed(answer)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A good request with some bits flipped, or cut off."""
    message = bytearray(quick(draw(st.integers(0, 3))))
    for place in draw(st.lists(st.integers(0, len(message) - 1), max_size=4)):
        message[place] ^= draw(st.integers(1, 255))
    return bytes(message[: draw(st.integers(0, len(message)) | st.just(len(message)))])


@settings(max_examples=200)
@given(messages=st.lists(spoilt() | st.binary(max_size=60), min_size=1, max_size=5))
def test_spoilt_messages_are_answered_or_end_the_stream(channel: grpc.Channel, messages: list[bytes]) -> None:
    got, well = answers(channel, messages)
    assert len(got) == len(messages) or not well
    for answer in got:
        check_typed(answer)


@settings(max_examples=60)
@given(messages=st.lists(items(), min_size=1, max_size=6), read=st.integers(0, 3))
def test_streams_that_are_left_leave_nothing(channel: grpc.Channel, messages: list[bytes], read: int) -> None:
    with OpenStream(channel) as stream:
        stream.send(*messages)
        for _ in range(min(read, len(messages))):
            check_typed(stream.next())


@pytest.mark.parametrize("read", range(6))
def test_a_stream_that_is_left_while_an_answer_is_written_leaves_nothing(
    running: RunningServer, channel: grpc.Channel, read: int
) -> None:
    until(lambda: metric(running, "convolver_in_flight") == 0, "the stream before to be let go of")
    before = metric(running, RECEIVED) - metric(running, SENT)  # those that were never answered

    def is_blocked() -> bool:
        waiting = metric(running, RECEIVED) - metric(running, SENT) - before
        all_held = waiting == metric(running, "convolver_in_flight") == WINDOW
        return all_held and metric(running, "convolver_backlog_seconds") < ROUNDING

    with OpenStream(channel) as stream:
        stream.send(*map(padded, range(40)))
        for _ in range(read):
            stream.next()
        until(is_blocked, "an answer to be written that nobody reads")
