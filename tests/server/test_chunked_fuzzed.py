"""Streams of chunks that nobody would write: each is answered or refused with a reason, and the server serves on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.contract import ANSWER, IMAGE, KERNEL, convolution, refusal
from tests.e2e.test_fuzzed_requests import TYPED, requests
from tests.server.chunked_calls import IN_FLIGHT, MEMORY, OpenCall, chunks, data_of, first, more, whole
from tests.server.layer_calls import UNKNOWN, metric
from tests.wait import until

from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.conftest import RunningServer
    from tests.server.chunked_calls import Answer

DATA = data_of(KERNEL, IMAGE)
PIECES = convolution((6, 1, 512, 1024), (1, 1, 1, 1))
"""Runs in pieces."""

GOOD: dict[str, list[bytes]] = {
    "whole": [first(convolution()), more(DATA[:20], DATA[20:30]), more(DATA[30:])],
    "in pieces": [first(PIECES), *chunks(np.ones(1 + 6 * 2**19, np.float32).tobytes(), 2**20)],
}


@pytest.fixture(scope="module")
def channel(serve: Callable[..., RunningServer]) -> Iterator[grpc.Channel]:
    """To a server that computes no request for long; it answers a good call after all of them, and holds nothing."""
    limits = ("--max-work=1e7", "--max-request-bytes=64MiB", "--memory-budget=128MiB", "--max-output-elements=1e7")
    running = serve(*limits, "--threads=2")
    with grpc.insecure_channel(running.address) as channel:
        yield channel
        assert whole(channel, GOOD["whole"]).data == ANSWER.tobytes()
        until(lambda: metric(running, IN_FLIGHT) == metric(running, MEMORY) == 0, "nothing to be left")
    assert running.stop() == 0
    assert not [line for line in running.lines if "Traceback" in line or "never retrieved" in line]


def answered(channel: grpc.Channel, messages: Sequence[bytes]) -> Answer | None:
    """The answer; None for a call that ends with one of our statuses."""
    with OpenCall(channel, *messages) as opened:
        opened.close()
        try:
            return opened.answer()
        except grpc.RpcError as failure:
            said = refusal(failure)
    assert said.code in TYPED, said
    assert said.info.domain == "convolver", said
    return None


@st.composite
def mutated(draw: st.DrawFn) -> list[bytes]:
    """A good stream whose messages are cut, repeated, left out, in another order, or have others among them."""
    messages = list(GOOD[draw(st.sampled_from(sorted(GOOD)))])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(messages)))
        some = messages[at : at + draw(st.integers(1, 2))]
        kind = draw(st.sampled_from(["cut", "repeat", "leave out", "swap", "insert", "flip"]))
        if kind == "insert" or not some:
            messages[at:at] = [draw(st.binary(max_size=30) | st.sampled_from([b"", UNKNOWN, more(b""), more(b"x")]))]
        elif kind == "cut":
            messages[at] = some[0][: draw(st.integers(0, len(some[0])))]
        elif kind == "repeat":
            messages[at:at] = some
        elif kind == "leave out":
            del messages[at]
        elif kind == "swap":
            messages[at : at + 2] = reversed(some)
        elif some[0]:
            place = draw(st.integers(0, min(200, len(some[0]) - 1)))
            flipped = some[0][place] ^ draw(st.integers(1, 255))
            messages[at] = some[0][:place] + bytes([flipped]) + some[0][place + 1 :]
    return messages


@settings(max_examples=300)
@given(messages=mutated())
def test_mutated_streams_are_answered_or_refused(channel: grpc.Channel, messages: list[bytes]) -> None:
    answered(channel, messages)
    assert whole(channel, GOOD["whole"]).data == ANSWER.tobytes()


@settings(max_examples=150)
@given(message=requests(), borders=st.lists(st.integers(0, 500), max_size=4))
def test_requests_that_nobody_would_write_are_answered_as_by_convolve(
    channel: grpc.Channel, message: bytes, borders: list[int]
) -> None:
    asked = pb.ConvolveRequest.FromString(message)
    data, cuts = b"".join(asked.data), sorted(borders)
    parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    answered(channel, [first(asked.convolution), *map(more, parts)])


@settings(max_examples=60)
@given(messages=mutated(), read=st.integers(0, 3))
def test_streams_that_are_left_leave_nothing(channel: grpc.Channel, messages: list[bytes], read: int) -> None:
    with OpenCall(channel, *messages) as opened:
        opened.close()
        try:
            for _ in zip(range(read), opened, strict=False):
                pass
        except grpc.RpcError:
            assert opened.call.code() in TYPED


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_good_streams_are_answered(channel: grpc.Channel, seed: int) -> None:
    x = np.random.default_rng(seed).integers(0, 9, (6, 1, 512, 1024)).astype(np.float32)
    messages = chunks(np.float32(3).tobytes() + x.tobytes(), 2**19 + seed % 1000)
    answer = answered(channel, [first(PIECES), *messages])
    assert answer is not None
    assert answer.data == (3 * x).tobytes()
