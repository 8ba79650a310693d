"""Hold: who may share which memory, and that nothing of it outlives the stream."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import grpc
import pytest
from tests.server.hold_calls import (
    BUDGET,
    PAGE,
    Memfd,
    OpenHold,
    descriptors,
    mappings,
    shared,
    until_nothing_is_shared,
    why,
)
from tests.wait import until

from convolver.core.errors import InvalidConvolution, LimitExceeded, Overloaded
from convolver.server.shared_memory_service import is_on_this_host
from convolver.v1 import shared_memory_service_pb2 as pb
from convolver.v1.convolution_service_pb2 import GetInfoRequest
from convolver.v1.convolution_service_pb2_grpc import ConvolutionServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

NO_MEMFD = "no memfd that this server may open"


def test_memory_is_shared_once_the_challenge_stands_in_it(hold: OpenHold, sharing_server: RunningServer) -> None:
    with Memfd(3 * PAGE) as memory:
        challenge = hold.offer(7, memory.descriptor, memory.bytes).challenge
        assert (challenge.tag, len(challenge.nonce)) == (7, 16)
        memory.write(challenge.nonce)
        held = hold.prove(7).held
        assert held.tag == 7
        assert len(bytes.fromhex(held.id)) == 16
        assert shared(sharing_server) == (1, 3 * PAGE)


def test_ids_and_nonces_are_new_each_time(hold: OpenHold) -> None:
    with Memfd() as memory:
        nonces = {hold.offer(tag, memory.descriptor).challenge.nonce for tag in range(20)}
    assert len(nonces) == 20


def test_released_memory_is_unmapped(hold: OpenHold, sharing_server: RunningServer) -> None:
    with Memfd() as memory:
        hold.hold(1, memory)
        assert mappings(sharing_server) == 1
        assert hold.release(1).released.tag == 1
        assert shared(sharing_server) == (0, 0)
        until(lambda: mappings(sharing_server) == descriptors(sharing_server) == 0, "the memory to be unmapped")


def test_an_offer_may_be_released_before_its_proof(hold: OpenHold, sharing_server: RunningServer) -> None:
    with Memfd() as memory:
        hold.offer(1, memory.descriptor)
        assert hold.release(1).released.tag == 1
        assert "no offer of this tag" in why(hold.prove(1)).message
    assert descriptors(sharing_server) == 0


def test_who_cannot_write_the_challenge_gets_nothing(hold: OpenHold, sharing_server: RunningServer) -> None:
    with Memfd() as memory:
        hold.offer(1, memory.descriptor)
        memory.write(b"x" * 16)
        assert "do not stand" in why(hold.prove(1)).message
        assert (shared(sharing_server), descriptors(sharing_server)) == ((0, 0), 0)


def test_there_is_one_attempt(hold: OpenHold) -> None:
    with Memfd() as memory:
        nonce = hold.offer(1, memory.descriptor).challenge.nonce
        assert isinstance(why(hold.prove(1)), InvalidConvolution)
        memory.write(nonce)
        assert "no offer of this tag" in why(hold.prove(1)).message


def test_the_challenge_of_one_caller_proves_nothing_for_another(hold: OpenHold, sharing_channel: grpc.Channel) -> None:
    with Memfd() as memory, OpenHold(sharing_channel) as thief:
        own = hold.offer(1, memory.descriptor).challenge.nonce
        thief.offer(1, memory.descriptor)
        memory.write(own)
        assert "do not stand" in why(thief.prove(1)).message
        assert hold.prove(1).held.id


def test_memory_that_is_held_is_not_held_twice(hold: OpenHold, sharing_channel: grpc.Channel) -> None:
    """What a holder writes at the start of its memory may be the words of a thief, who was given them as a nonce."""
    with Memfd() as memory, OpenHold(sharing_channel) as thief:
        hold.hold(1, memory)
        memory.write(thief.offer(1, memory.descriptor).challenge.nonce)
        assert "shared already" in why(thief.prove(1)).message


def test_a_tag_stands_for_one_region(hold: OpenHold) -> None:
    with Memfd() as first, Memfd() as second:
        hold.hold(1, first)
        assert why(hold.offer(1, second.descriptor)).message.startswith("tag is 1, which a region")
        hold.offer(2, second.descriptor)
        assert why(hold.offer(2, second.descriptor)).message.startswith("tag is 2, which a region")


@pytest.mark.parametrize("step", ["prove", "release"])
def test_an_unknown_tag_is_refused_and_the_stream_goes_on(hold: OpenHold, step: str) -> None:
    error = why(getattr(hold, step)(99))
    assert isinstance(error, InvalidConvolution)
    assert error.field == "tag"
    with Memfd() as memory:
        hold.hold(1, memory)


@pytest.mark.parametrize("message", [b"", b"\xff", b"\xa2\x06\x02hi"], ids=["no step", "no message", "unknown field"])
def test_a_message_without_a_step_ends_the_stream(
    hold: OpenHold, sharing_server: RunningServer, message: bytes
) -> None:
    with Memfd() as memory:
        hold.hold(1, memory)
        hold.send(message)
        assert hold.failure().code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
        until_nothing_is_shared(sharing_server)


def test_shared_memory_keeps_its_size(hold: OpenHold) -> None:
    with Memfd() as memory:
        hold.hold(1, memory)
        for size in (0, 2 * PAGE):
            with pytest.raises(PermissionError):
                os.ftruncate(memory.descriptor, size)


def test_more_bytes_than_there_are_are_refused(hold: OpenHold) -> None:
    with Memfd() as memory:
        assert "said to have 4097 bytes, but the memfd has 4096" in why(hold.offer(1, memory.descriptor, 4097)).message


@pytest.mark.parametrize("size", [0, 15])
def test_a_region_that_a_challenge_does_not_fit_is_refused(hold: OpenHold, size: int) -> None:
    with Memfd() as memory:
        assert "at least 16 bytes" in why(hold.offer(1, memory.descriptor, size)).message


@pytest.mark.parametrize("size", [BUDGET + 1, 2**63, 2**64 - 1])
def test_a_region_beyond_the_budget_is_refused_for_ever(hold: OpenHold, size: int) -> None:
    with Memfd() as memory:
        error = why(hold.offer(1, memory.descriptor, size))
    assert isinstance(error, LimitExceeded)
    assert (error.limit, error.value, error.setting) == (BUDGET, size, "--shared-memory-budget")


def test_regions_beyond_the_budget_are_refused_for_now(hold: OpenHold) -> None:
    with Memfd(BUDGET) as large, Memfd() as small:
        hold.hold(1, large)
        assert isinstance(why(hold.offer(2, small.descriptor)), Overloaded)
        hold.release(1)
        hold.hold(2, small)


def test_the_regions_are_counted_before_they_are_proven(hold: OpenHold, sharing_server: RunningServer) -> None:
    with Memfd() as memory:
        for tag in range(256):
            assert hold.offer(tag, memory.descriptor).HasField("challenge")
        assert isinstance(why(hold.offer(256, memory.descriptor)), Overloaded)
        assert (shared(sharing_server)[0], descriptors(sharing_server)) == (256, 256)


OFFER_AND_WAIT = """
import os, sys, grpc
from tests.server.hold_calls import Memfd, OpenHold
hold = OpenHold(grpc.insecure_channel(sys.argv[1]))
memory = Memfd()
print(hold.hold(1, memory), flush=True)
hold.offer(2, Memfd().descriptor)
print("offered", flush=True)
sys.stdin.read()
"""


def test_the_regions_of_a_caller_that_is_killed_are_released(sharing_server: RunningServer) -> None:
    until_nothing_is_shared(sharing_server)
    command = [sys.executable, "-c", OFFER_AND_WAIT, sharing_server.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as caller:
        assert caller.stdout
        assert len(caller.stdout.readline()) == 33
        assert caller.stdout.readline() == b"offered\n"
        assert shared(sharing_server)[0] == 2
        caller.kill()
    until_nothing_is_shared(sharing_server)
    until(lambda: mappings(sharing_server) == descriptors(sharing_server) == 0, "the memory to be unmapped")


def test_a_thousand_aborted_streams_leave_nothing(sharing_server: RunningServer, sharing_channel: grpc.Channel) -> None:
    for i in range(1000):
        with Memfd() as first, Memfd() as second, OpenHold(sharing_channel) as hold:
            hold.hold(1, first)
            hold.offer(2, second.descriptor)
        if i % 50 == 49:
            until_nothing_is_shared(sharing_server)
    until(lambda: mappings(sharing_server) == descriptors(sharing_server) == 0, "the memory to be unmapped")


def test_the_server_stops_while_memory_is_shared(serve: Callable[..., RunningServer]) -> None:
    running = serve("--backend=reference", "--shared-memory", "--grace=3600")
    with grpc.insecure_channel(running.address) as channel, OpenHold(channel) as hold, Memfd() as memory:
        hold.hold(1, memory)
        running.process.terminate()
        assert hold.failure().code == grpc.StatusCode.UNAVAILABLE
        assert running.wait() == 0


def test_the_server_says_whether_memory_may_be_shared(channel: grpc.Channel, sharing_channel: grpc.Channel) -> None:
    said = [ConvolutionServiceStub(one).GetInfo(GetInfoRequest()).shared_memory for one in (channel, sharing_channel)]
    assert said == [False, True]


def test_sharing_is_off_unless_it_was_asked_for(channel: grpc.Channel) -> None:
    with OpenHold(channel) as hold:
        hold.send(pb.HoldRequest(release=pb.RegionRelease(tag=1)).SerializeToString())
        assert hold.failure().code == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        ("unix:", True),
        ("unix:/tmp/socket", True),
        ("unix-abstract:name", True),
        ("ipv4:127.0.0.1:50051", True),
        ("ipv4:127.8.9.10:1", True),
        ("ipv6:%5B::1%5D:50051", True),
        ("ipv6:[::1]:50051", True),
        ("ipv6:%5B::ffff:127.0.0.1%5D:50051", True),
        ("ipv4:10.0.0.1:50051", False),
        ("ipv6:%5B::ffff:10.0.0.1%5D:50051", False),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", False),
        ("vsock:1:2", False),
        ("", False),
    ],
)
def test_who_is_on_this_host(peer: str, here: bool) -> None:  # noqa: FBT001  # a table's column
    assert is_on_this_host(peer) is here
