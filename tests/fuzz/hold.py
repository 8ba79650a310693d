"""The registration of shared memory: offers of memfds, of what is none, and of numbers that name nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from tests.fuzz import mutation
from tests.fuzz.serving import Serving, check_status
from tests.fuzz.target import Target, framed, frames
from tests.server.hold_calls import SEALS, Memfd
from tests.wait import until

from convolver.v1 import shared_memory_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

CALLER = 77
"""The process id that stands, in an input, for that of the caller."""

HONEST_TAGS = 6
"""Below it the caller writes what the challenge asks for."""


def target(_: str) -> Target:
    """The only one."""
    server, caller = Serving(), _Caller()
    before = _descriptors()

    def run(data: bytes) -> None:
        messages = [caller.named(message) for message in frames(data)]
        server.call("SharedMemoryService/Hold", *messages, answer=caller.take)
        until(lambda: _descriptors() == before, "all descriptors to be closed")  # a thread unmaps regions

    seeds = [framed(step.SerializeToString() for step in steps) for steps in _seeds(len(caller.memory))]
    return Target(run, seeds, mutation.of_messages(pb.HoldRequest))


class _Caller:
    """A process that has the same descriptors as this one: its own are those that a server refuses unseen."""

    def __init__(self) -> None:
        self.memory = [Memfd(), Memfd(2**16), Memfd(), Memfd(seals=0), Memfd(seals=SEALS | 0x10), Memfd(15)]
        others = [*os.pipe(), os.open("/dev/zero", os.O_RDWR), os.open(sys.executable, os.O_RDONLY)]
        self._descriptors = [*(memory.descriptor for memory in self.memory), *others]
        self._process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=self._descriptors)
        self._offered: dict[int, int] = {}

    def named(self, message: bytes) -> bytes:
        """The message, with a real process and descriptor for those that stand for them."""
        try:
            request = pb.HoldRequest.FromString(message)
        except DecodeError:
            return message
        if request.offer.process_id != CALLER:
            return message
        request.offer.process_id = self._process.pid
        number = request.offer.descriptor
        if 0 <= number < len(self._descriptors):
            request.offer.descriptor = self._descriptors[number]
        if 0 <= number < len(self.memory):
            self._offered[request.offer.tag] = request.offer.descriptor
        return request.SerializeToString()

    def take(self, answer: bytes) -> None:
        """Does what the challenge asks for, be it of another offer of that tag; the server's refusals are checked."""
        response = pb.HoldResponse.FromString(answer)
        if response.HasField("refused"):
            check_status(response.refused.status.SerializeToString())
        tag = response.challenge.tag
        if response.HasField("challenge") and tag < HONEST_TAGS and tag in self._offered:
            with suppress(PermissionError):  # by then the tag is that of an offer which is sealed against writing
                os.pwrite(self._offered[tag], response.challenge.nonce, 0)


def _descriptors() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def _seeds(count: int) -> Iterator[list[pb.HoldRequest]]:
    """Calls that are in order, or offer what is none."""
    for number in range(count):
        offer = pb.RegionOffer(tag=number, process_id=CALLER, descriptor=number, bytes=4096)
        proof, release = pb.RegionProof(tag=number), pb.RegionRelease(tag=number)
        yield [pb.HoldRequest(offer=offer), pb.HoldRequest(proof=proof), pb.HoldRequest(release=release)]
        yield [pb.HoldRequest(offer=offer), pb.HoldRequest(proof=proof), pb.HoldRequest(offer=offer)]
    offers = [pb.RegionOffer(tag=i, process_id=CALLER, descriptor=i, bytes=2**i) for i in range(8)]
    yield [pb.HoldRequest(offer=offer) for offer in offers]
    yield [pb.HoldRequest(offer=pb.RegionOffer(process_id=1, bytes=16))]
