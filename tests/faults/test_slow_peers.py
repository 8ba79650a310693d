"""Peers that do not read, do not write, say nothing, or have gone without a word."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import SERVICE, call, convolution, request
from tests.faults.proxy import FOR_EVER, Kind, Mishap, Way
from tests.faults.world import IDLE_SECONDS, IMPATIENT, PLAIN, Fault, World
from tests.server.chunked_calls import LABELS, OpenCall, first, more
from tests.server.stream_calls import OpenStream, item, ordinary
from tests.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from convolver.v1.convolution_pb2 import Convolution

LARGE, HUGE = 2_000_000, 12_000_000
"""Elements of an answer: more than a message may be that is read in vain, and than gRPC sends to somebody who does not
ask for the next one.
"""

SENT = f"grpc_server_msg_sent_total{{{LABELS}}}"
CONNECTIONS = 20
WINDOW = 8
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes(3) + b"\4" + bytes(5)


def padded(elements: int) -> Convolution:
    """Of a few bytes, and with an answer of so many elements."""
    header = convolution((1, 1, 1), (1, 1, 1))
    header.layers[0].definition.parameters.explicit_padding.begin.append(0)
    header.layers[0].definition.parameters.explicit_padding.end.append(elements)
    return header


ONE = np.ones(1, np.float32)


def does_not_read_a_message(world: World) -> None:
    """The server has written it, and nobody takes it until the connection is cut."""
    world.proxy.mishap = Mishap(Kind.STALL, Way.DOWN, at=1000, seconds=FOR_EVER)
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(world.proxy.address, options) as channel:
        convolve: Any = channel.unary_unary(f"/{SERVICE}/Convolve")
        answering = convolve.future(request(padded(LARGE), ONE, ONE), timeout=IDLE_SECONDS)
        assert answering.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: world.in_flight == 0, "the answer to be made")
    world.proxy.reset_all()
    world.proxy.mishap = None


def does_not_read_chunks(world: World) -> None:
    """That it was admitted is told by the first message of its answer: it is in flight for half a second only."""
    sent = world.server.metric(SENT)
    with (
        grpc.insecure_channel(world.server.address) as channel,
        OpenCall(channel, first(padded(HUGE), ONE.tobytes(), ONE.tobytes())) as chunks,
    ):
        chunks.close()
        until(lambda: world.server.metric(SENT) > sent, "its admission")
        until(lambda: world.in_flight == 0, "the server to give up")
        assert chunks.failure().code is grpc.StatusCode.DEADLINE_EXCEEDED


def does_not_read_a_stream(world: World) -> None:
    """The server takes what its window lets in, and what others ask for too."""
    with grpc.insecure_channel(world.server.address) as channel, OpenStream(channel) as stream:
        stream.send(*(item(number, padded(LARGE), ONE, ONE) for number in range(5 * WINDOW)))
        until(lambda: world.in_flight == WINDOW, "as many as the server takes")
        world.check_serves()


def reads_slowly(world: World) -> None:
    world.proxy.mishap = Mishap(Kind.SLOW, Way.DOWN, seconds=0.001)
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(world.proxy.address, options) as channel:
        assert len(call(channel, request(padded(LARGE), ONE, ONE))) > 4 * LARGE
    world.proxy.mishap = None


def does_not_write(world: World, *, sent: int) -> None:
    """So many bytes of a tensor of 9 numbers, and no more."""
    with grpc.insecure_channel(world.server.address) as channel, OpenCall(channel, first(convolution())) as chunks:
        chunks.send(more(bytes(sent)))
        assert chunks.failure().code is grpc.StatusCode.DEADLINE_EXCEEDED


def writes_nothing(world: World) -> None:
    """The call begins, and not even its header comes."""
    with grpc.insecure_channel(world.server.address) as channel, OpenCall(channel) as chunks:
        assert chunks.failure().code is grpc.StatusCode.DEADLINE_EXCEEDED


def writes_empty_messages(world: World) -> None:
    """Which are no sign of life."""
    with grpc.insecure_channel(world.server.address) as channel, OpenCall(channel, first(convolution())) as chunks:
        begin = time.monotonic()
        while chunks.call.is_active() and time.monotonic() < begin + 20 * IDLE_SECONDS:
            chunks.send(more())
            time.sleep(IDLE_SECONDS / 10)
        assert chunks.failure().code is grpc.StatusCode.DEADLINE_EXCEEDED


def vanishes(world: World, method: type[OpenCall | OpenStream], *messages: bytes) -> None:
    """Neither what it sends now nor its end arrives, as of a machine that lost its network."""
    world.proxy.mishap = Mishap(Kind.SWALLOW, at=2000)
    with grpc.insecure_channel(world.proxy.address) as channel, method(channel) as opened:
        opened.send(*messages)
        time.sleep(IDLE_SECONDS / 2)
    until(lambda: world.in_flight == 0, "the server to give up")
    world.check_serves()
    world.proxy.reset_all()
    world.proxy.mishap = None


def connects(world: World, *, says: bytes) -> None:
    """Many connections that say this and no more."""
    host, _, port = world.server.address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            made = stack.enter_context(socket.create_connection((host, int(port))))
            made.sendall(says)
        world.check_serves()


UPLOAD = [first(convolution((1, 1, 1000, 1000), (1, 1, 2, 2))), *[more(bytes(2**19))] * 4]
FAULTS = [
    Fault("reader stops in a message", does_not_read_a_message),
    Fault("reader stops in chunks", does_not_read_chunks, IMPATIENT),
    Fault("reader stops in a stream", does_not_read_a_stream, (*PLAIN, f"--stream-window={WINDOW}")),
    Fault("reader is slow", reads_slowly),
    Fault("writer stops before the header", writes_nothing, IMPATIENT),
    Fault("writer stops after the header", partial(does_not_write, sent=0), IMPATIENT),
    Fault("writer stops within a tensor", partial(does_not_write, sent=20), IMPATIENT),
    Fault("writer sends empty messages", writes_empty_messages, IMPATIENT),
    Fault("half-open, chunked", lambda world: vanishes(world, OpenCall, *UPLOAD), IMPATIENT),
    Fault("half-open, stream", lambda world: vanishes(world, OpenStream, *map(ordinary, range(20)))),
    Fault("connections that say nothing", partial(connects, says=b"")),
    Fault("connections that stop in the preface", partial(connects, says=PREFACE[:10])),
    Fault("connections that stop after the settings", partial(connects, says=PREFACE + SETTINGS)),
    Fault("connections that stop in a frame", partial(connects, says=PREFACE + SETTINGS + b"\0\x40\0\1\4")),
    Fault("connections that speak HTTP/1", partial(connects, says=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")),
    Fault("connections that speak nonsense", partial(connects, says=bytes(range(256)) * 16)),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_server_survives(fault: Fault, endures: Callable[[Fault], None]) -> None:
    endures(fault)
