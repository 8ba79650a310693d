"""Calls of ConvolveChunked that end in the middle, by the caller or by the server: nothing is left of them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL, convolution
from tests.server.chunked_calls import ENDED, IN_FLIGHT, MEMORY, OpenCall, chunks, data_of, first, more, whole
from tests.server.layer_calls import metric
from tests.wait import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

    from convolver.v1.convolution_pb2 import Convolution

DATA = data_of(KERNEL, IMAGE)
ITEMS, ITEM = 16, 2**22
MIB = 2**20


@pytest.fixture(scope="module")
def running(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve("--threads=2")


@pytest.fixture
def channel(running: RunningServer) -> Iterator[grpc.Channel]:
    """To that server, which holds nothing after each test."""
    with grpc.insecure_channel(running.address) as channel:
        yield channel
        assert whole(channel, [first(convolution(), DATA)]).data == ANSWER.tobytes()
        until(lambda: metric(running, IN_FLIGHT) == metric(running, MEMORY) == 0, "nothing to be left")


def large(*, deterministic: bool) -> Convolution:
    """In pieces unless it is deterministic."""
    header = convolution((ITEMS, 1, 1024, 1024), (1, 1, 1, 1))
    header.execution.deterministic = deterministic
    return header


def data() -> bytes:
    return np.float32(2).tobytes() + np.ones(ITEMS * ITEM // 4, np.float32).tobytes()


each_way = pytest.mark.parametrize("deterministic", [True, False], ids=["whole", "in pieces"])


@each_way
@pytest.mark.parametrize("sent", [0, 20, 100], ids=["no data", "some data", "all data"])
def test_a_call_that_is_cancelled_leaves_nothing(
    running: RunningServer, channel: grpc.Channel, sent: int, *, deterministic: bool
) -> None:
    before = metric(running, ENDED)
    with OpenCall(channel, first(large(deterministic=deterministic)), *chunks(data())[:sent]) as opened:
        until(lambda: metric(running, MEMORY) >= ITEMS * ITEM, "its admission")
        if sent == 20 and not deterministic:
            opened.next()
        opened.call.cancel()
        until(lambda: metric(running, ENDED) == before + 1, "the handler to end")
        until(lambda: metric(running, IN_FLIGHT) == metric(running, MEMORY) == 0, "its bytes to be given back")


@each_way
def test_a_call_whose_time_is_over_leaves_nothing(
    running: RunningServer, channel: grpc.Channel, *, deterministic: bool
) -> None:
    whole(channel, [first(convolution(), DATA)])  # so that it is connected, and the next call arrives in its time
    before = metric(running, ENDED)
    with OpenCall(channel, first(large(deterministic=deterministic)), *chunks(data())[:20], timeout=3) as opened:
        assert opened.failure().code == grpc.StatusCode.DEADLINE_EXCEEDED
    until(lambda: metric(running, ENDED) == before + 1, "the handler to end")


@each_way
def test_a_server_that_stops_finishes_an_upload(serve: Callable[..., RunningServer], *, deterministic: bool) -> None:
    running, messages = serve("--backend=reference"), chunks(data())
    with (
        grpc.insecure_channel(running.address) as channel,
        OpenCall(channel, first(large(deterministic=deterministic)), *messages[:20]) as opened,
    ):
        until(lambda: metric(running, MEMORY) >= ITEMS * ITEM, "its admission")
        running.process.send_signal(signal.SIGTERM)
        until(lambda: is_refused(running), "new calls to be refused")
        opened.send(*messages[20:])
        opened.close()
        assert opened.answer().data == np.full(ITEMS * ITEM // 4, 2, np.float32).tobytes()
    assert running.wait() == 0


def is_refused(running: RunningServer) -> bool:
    with grpc.insecure_channel(running.address) as channel:
        try:
            whole(channel, [first(convolution(), DATA)])
        except grpc.RpcError:
            return True
    return False


@each_way
def test_a_server_that_stops_ends_an_upload_that_does_not_end(
    serve: Callable[..., RunningServer], *, deterministic: bool
) -> None:
    stop_in_uploads(serve("--backend=reference", "--grace=0.2"), deterministic=deterministic)


@pytest.mark.parametrize(("held_up", "free"), [("0.3", "0"), ("0.01", "0.01")])
def test_so_does_one_whose_event_loop_is_held_up(
    serve: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch, held_up: str, free: str
) -> None:
    monkeypatch.setenv("HELD_UP_SECONDS", held_up)
    monkeypatch.setenv("FREE_SECONDS", free)
    for _ in range(2):
        running = serve("--backend=reference", "--grace=0.2", module="tests.server.held_up_server")
        stop_in_uploads(running, deterministic=False)


def stop_in_uploads(running: RunningServer, *, deterministic: bool) -> None:
    """One goes on and one whose answer nobody reads. Both are cut off, which is no failure of the server's."""
    with (
        grpc.insecure_channel(running.address) as channel,
        OpenCall(channel, first(large(deterministic=deterministic)), *chunks(data())[:20]) as opened,
        OpenCall(channel, first(large(deterministic=deterministic)), *chunks(data())) as unread,
    ):
        unread.close()
        until(lambda: metric(running, MEMORY) >= 2 * ITEMS * ITEM, "its admission")
        assert running.stop() == 0
        assert opened.failure().code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert not [line for line in running.lines if "Traceback" in line or "never retrieved" in line]


CALLER = """
import sys
import grpc
from tests.server.chunked_calls import OpenCall
from tests.server.test_chunked_endings import chunks, data, first, large
with grpc.insecure_channel(sys.argv[1]) as channel:
    with OpenCall(channel, first(large(deterministic=sys.argv[2] == "True")), *chunks(data())[:30]) as opened:
        print("sent", flush=True)
        sys.stdin.read()
"""


@each_way
@pytest.mark.usefixtures("channel")
def test_a_caller_that_is_killed_leaves_nothing(running: RunningServer, *, deterministic: bool) -> None:
    before = metric(running, ENDED)
    command = [sys.executable, "-c", CALLER, running.address, str(deterministic)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as caller:
        until(lambda: metric(running, MEMORY) >= ITEMS * ITEM, "its admission")
        caller.kill()
    until(lambda: metric(running, ENDED) == before + 1, "the handler to end")


def state(running: RunningServer) -> tuple[int, int, int]:
    """Resident bytes, threads and descriptors of a server."""
    process = Path(f"/proc/{running.process.pid}")
    lines = dict(line.split(":", 1) for line in (process / "status").read_text().splitlines())
    descriptors = len(list((process / "fd").iterdir()))
    return 1024 * int(lines["VmRSS"].split()[0]), int(lines["Threads"]), descriptors


def aborted(channel: grpc.Channel, number: int, chance: random.Random) -> None:
    """An upload of some kind that does not end well."""
    header = large(deterministic=bool(number % 2))
    kind = ("cancelled", "too much", "too little", "second header", "garbage", "too late", "cancelled in data")[
        number % 7
    ]
    small, chunk = first(convolution(), DATA[: chance.randrange(1, 52)]), more(bytes(chance.choice([1, 1000, 2**18])))
    messages = {
        "cancelled": [first(header), chunk],
        "too much": [small, more(DATA)],
        "too little": [first(header), chunk, chunk],
        "second header": [first(header), chunk, small],
        "garbage": [first(header), chunk, b"\xff\xff"],
        "too late": [first(header), chunk],
        "cancelled in data": [first(header), *[chunk] * 5],
    }[kind]
    timeout = chance.choice([0.001, 0.02]) if kind == "too late" else 60
    with OpenCall(channel, *messages, timeout=timeout) as opened:
        if kind.startswith("cancelled"):
            return
        opened.close()
        if kind != "too late":
            assert opened.failure().code == grpc.StatusCode.INVALID_ARGUMENT


def test_a_thousand_aborted_uploads_leave_nothing(running: RunningServer, channel: grpc.Channel) -> None:
    chance = random.Random(0)
    for number in range(150):  # whose threads and pools stay
        aborted(channel, number, chance)
    until(lambda: metric(running, IN_FLIGHT) == metric(running, MEMORY) == 0, "nothing to be left")
    resident, threads, descriptors = state(running)
    before = len(running.lines)
    for number in range(1000):
        aborted(channel, number, chance)
    until(lambda: metric(running, IN_FLIGHT) == metric(running, MEMORY) == 0, "nothing to be left")
    until(lambda: state(running)[0] < resident + 32 * MIB, "its memory to be given back")
    until(lambda: state(running)[1] <= threads + 1, "threads to end")  # gRPC's own pool breathes
    until(lambda: state(running)[2] <= descriptors, "descriptors to be closed")
    assert not [line for line in running.lines[before:] if "Traceback" in line or "never retrieved" in line]
