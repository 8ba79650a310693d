"""Callers who stall: a side that neither sends nor takes for --idle-timeout ends the call, and what it held is released
at once, be it that gRPC waits for the caller yet.
"""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL, convolution
from tests.server.chunked_calls import ENDED, IN_FLIGHT, MEMORY, OpenCall, chunks, data_of, first, more, whole
from tests.server.layer_calls import BIAS, SERVICE, WEIGHT, metric
from tests.server.layer_calls import first as first_of_layer
from tests.server.layer_calls import refused as refused_layer
from tests.server.layer_calls import rest as rest_of_layer
from tests.server.stream_calls import SLOW_IMAGE, SLOW_KERNEL, SLOW_MACS, slow_header
from tests.wait import until

from convolver.v1.layer_service_pb2_grpc import LayerServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

    from convolver.v1 import layer_service_pb2
    from convolver.v1.convolution_pb2 import Convolution

IDLE = 1.0
STALLED = grpc.StatusCode.DEADLINE_EXCEEDED
DATA = data_of(KERNEL, IMAGE)
SHAPE = (40, 1, 1024, 1024)
SIZE = 160 * 2**20
ENDED_LAYERS = (
    f'grpc_server_handling_seconds_count{{grpc_method="PutLayer",grpc_service="{SERVICE}",grpc_type="client_stream"}}'
)


@pytest.fixture(scope="module")
def impatient(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server with one thread that waits for nobody for long."""
    return serve("--backend=reference", "--threads=1", f"--idle-timeout={IDLE}")


@pytest.fixture
def channel(impatient: RunningServer) -> Iterator[grpc.Channel]:
    """To that server, which holds nothing after each test and whose handlers have all ended."""
    before = metric(impatient, ENDED)
    with grpc.insecure_channel(impatient.address) as channel:
        yield channel
        assert whole(channel, [first(convolution(), DATA)]).data == ANSWER.tobytes()
        until(lambda: metric(impatient, IN_FLIGHT) == metric(impatient, MEMORY) == 0, "nothing to be left")
    until(lambda: metric(impatient, ENDED) > before + 1, "the handlers to end")


def large(*, deterministic: bool) -> Convolution:
    """Takes SIZE bytes and four more, and gives SIZE; in pieces unless it is deterministic."""
    header = convolution(SHAPE, (1, 1, 1, 1))
    header.execution.deterministic = deterministic
    return header


STOPPED: dict[str, tuple[list[bytes], str]] = {
    "before the header": ([], "before the header came"),
    "after the header": ([first(convolution())], "when 0 of 52 bytes had come"),
    "within the data": ([first(convolution(), DATA[:7]), more(DATA[7:20])], "when 20 of 52 bytes had come"),
    "before the end": ([first(convolution(), DATA)], "when 52 of 52 bytes had come"),
    "within the data of pieces": ([first(large(deterministic=False)), *chunks(bytes(2**23))], f"when {2**23} of "),
}


@pytest.mark.parametrize("name", STOPPED)
def test_who_stops_sending_is_told_how_far_it_came(channel: grpc.Channel, name: str) -> None:
    messages, when = STOPPED[name]
    with OpenCall(channel, *messages) as opened:
        answer = opened.failure()
    assert (answer.code, answer.text.startswith(f"nothing came for {IDLE} s (--idle-timeout) {when}")) == (
        STALLED,
        True,
    )


def test_messages_without_data_are_no_sign_of_life(channel: grpc.Channel) -> None:
    with OpenCall(channel, first(convolution(), DATA[:5])) as opened:
        while not opened.call.done():
            opened.send(more(), more(b""))
            time.sleep(IDLE / 20)
        answer = opened.failure()
    assert (answer.code, "5 of 52 bytes" in answer.text) == (STALLED, True)


def test_who_is_slow_and_steady_is_served(serve: Callable[..., RunningServer]) -> None:
    idle = 3.0  # ten times the pauses, which may be longer where this machine has much to do
    running = serve("--backend=reference", f"--idle-timeout={idle}")
    begin = time.monotonic()
    with grpc.insecure_channel(running.address) as channel, OpenCall(channel, first(convolution())) as opened:
        for start in range(0, 52, 4):
            opened.send(more(DATA[start : start + 4]))
            time.sleep(idle / 10)
        opened.close()
        assert opened.answer().data == ANSWER.tobytes()
    assert time.monotonic() > begin + idle


def resident_bytes(running: RunningServer) -> int:
    """RSS of a server."""
    lines = Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


@pytest.mark.parametrize("deterministic", [True, False], ids=["whole", "in pieces"])
def test_who_does_not_read_holds_neither_memory_nor_the_thread(
    impatient: RunningServer, channel: grpc.Channel, *, deterministic: bool
) -> None:
    resident = resident_bytes(impatient)
    with OpenCall(channel, first(large(deterministic=deterministic)), *chunks(bytes(4 + SIZE))) as opened:
        opened.close()
        until(lambda: metric(impatient, MEMORY) >= SIZE, "its admission")
        with grpc.insecure_channel(impatient.address) as other:
            assert whole(other, [first(convolution(), DATA)]).data == ANSWER.tobytes()
        until(lambda: metric(impatient, MEMORY) == 0, "its bytes to be given back")
        until(lambda: resident_bytes(impatient) < resident + SIZE // 2, "its memory to be given back")
        answer = opened.failure()  # now it reads
    gone = re.search(r"nothing was taken for .* when (\d+) bytes had gone", answer.text)
    assert answer.code == STALLED
    assert gone
    assert 0 < int(gone[1]) < SIZE


def test_who_sends_too_much_and_does_not_read_holds_no_memory(impatient: RunningServer, channel: grpc.Channel) -> None:
    resident = resident_bytes(impatient)
    with OpenCall(channel, first(large(deterministic=False)), *chunks(bytes(5 + SIZE))) as opened:
        until(lambda: metric(impatient, MEMORY) >= SIZE, "its admission")
        until(lambda: metric(impatient, MEMORY) == 0, "its bytes to be given back")
        until(lambda: resident_bytes(impatient) < resident + SIZE // 2, "its memory to be given back")
        opened.close()
        answer = opened.failure()
    assert answer.code in (grpc.StatusCode.INVALID_ARGUMENT, STALLED)  # by which it was that ended it


def test_who_never_reads_and_leaves_is_forgotten(impatient: RunningServer, channel: grpc.Channel) -> None:
    with OpenCall(channel, first(large(deterministic=False)), *chunks(bytes(4 + SIZE))):
        until(lambda: metric(impatient, MEMORY) >= SIZE, "its admission")
        until(lambda: metric(impatient, MEMORY) == 0, "its bytes to be given back")


def test_who_waits_for_admission_does_not_stall(serve: Callable[..., RunningServer]) -> None:
    asked, image, kernel = convolution((1, 1, 600, 600)), np.ones((1, 1, 600, 600), np.float32), np.ones(4, np.float32)
    running = serve("--backend=reference", "--threads=2", f"--idle-timeout={IDLE}", "--memory-budget=292000000")
    with (
        grpc.insecure_channel(running.address) as channel,
        OpenCall(channel, first(slow_header()), more(data_of(SLOW_KERNEL, SLOW_IMAGE))) as slow,
    ):
        slow.close()
        until(lambda: metric(running, IN_FLIGHT) == 1, "the admission of what takes seconds")
        waiting = [OpenCall(channel, first(asked), more(data_of(kernel, image))) for _ in range(6)]
        for each in waiting:
            each.close()  # while the slow one runs, so that they need not be quick when their turn comes
        until(lambda: metric(running, IN_FLIGHT) == 7, "the others to come")
        with ThreadPoolExecutor(7) as threads:  # who did not read would stall
            answers = list(threads.map(OpenCall.answer, [slow, *waiting]))
    assert answers[0].plan.macs == SLOW_MACS
    for answer in answers[1:]:
        assert answer.data == np.full((599, 599), 4, np.float32).tobytes()


@pytest.mark.parametrize(
    ("messages", "when"),
    [
        ([], "before the definition came"),
        ([first_of_layer(WEIGHT[:9])], "when 9 of 112 bytes had come"),
        ([first_of_layer(WEIGHT), rest_of_layer(BIAS)], "when 112 of 112 bytes had come"),
    ],
    ids=["nothing", "some", "all"],
)
def test_a_layer_that_stalls_is_let_go_of(
    impatient: RunningServer, messages: list[layer_service_pb2.PutLayerRequest], when: str
) -> None:
    ended, outgoing = metric(impatient, ENDED_LAYERS), SimpleQueue[Any]()
    for message in messages:
        outgoing.put(message)
    with grpc.insecure_channel(impatient.address) as channel:
        stub = LayerServiceStub(channel)
        answer = refused_layer(lambda: stub.PutLayer(iter(outgoing.get, None), timeout=60))
        outgoing.put(None)
    assert (answer.code, answer.text) == (STALLED, f"nothing came for {IDLE} s (--idle-timeout) {when}")
    until(lambda: metric(impatient, ENDED_LAYERS) == ended + 1, "the handler to end")
    assert metric(impatient, "convolver_layer_bytes") == 0
