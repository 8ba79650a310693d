"""Regions within their limits, of number and of time; the registry is in this process, and so is the memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.server.hold_calls import PAGE, Memfd

from convolver.core.errors import Overloaded
from convolver.server import regions, shared_memory_service
from convolver.server.regions import Registry
from convolver.server.shared_memory_service import Lease
from convolver.v1 import shared_memory_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convolver.server.regions import Region

BUDGET = 64 * PAGE


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server opens no descriptor of its own process, and here it shall."""
    monkeypatch.setattr(regions, "_opened", lambda _, descriptor: os.dup(descriptor))


@pytest.fixture
def memory() -> Iterator[Memfd]:
    """Memory to be offered."""
    with Memfd() as memory:
        yield memory


def held(registry: Registry, memory: Memfd) -> Region:
    candidate = registry.open(1, memory.descriptor, PAGE)
    memory.write(candidate.nonce)
    region = registry.hold(candidate)
    candidate.close()
    return region


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_so_many_regions_are_shared_at_most_and_those_in_use_count(
    memory: Memfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "MOST_REGIONS", 2)
    registry = Registry(BUDGET)
    with Memfd() as other:
        region = held(registry, memory)
        used = memoryview(region.memory)
        registry.release(region)
        registry.unmap([region])
        registry.open(1, other.descriptor, PAGE).close()
        with pytest.raises(Overloaded, match="2 regions"):
            registry.open(1, other.descriptor, PAGE)
        used.release()
        del region
        registry.open(1, other.descriptor, PAGE).close()


def test_regions_in_use_take_their_bytes_of_the_budget(memory: Memfd) -> None:
    registry = Registry(PAGE)
    region = held(registry, memory)
    used = memoryview(region.memory)
    registry.release(region)
    registry.unmap([region])
    with pytest.raises(Overloaded, match=f"beside {PAGE} of others"):
        registry.open(1, memory.descriptor, PAGE)
    used.release()
    del region
    registry.open(1, memory.descriptor, PAGE).close()


def offer(memory: Memfd) -> pb.HoldRequest:
    return pb.HoldRequest(offer=pb.RegionOffer(tag=1, process_id=1, descriptor=memory.descriptor, bytes=PAGE))


def with_lease(monkeypatch: pytest.MonkeyPatch, test: Callable[[Lease, list[Callable[[], None]]], None]) -> None:
    """Runs `test` with a lease and the timers that it has set."""
    monkeypatch.setattr(shared_memory_service, "PROOF_SECONDS", 0.25)

    async def run() -> None:
        timers, loop, lease = list[Callable[[], None]](), asyncio.get_running_loop(), Lease(Registry(BUDGET))

        def call_later(seconds: float, call: Callable[..., None], *arguments: object) -> None:
            assert seconds == 0.25
            timers.append(lambda: call(*arguments))

        monkeypatch.setattr(loop, "call_later", call_later)
        test(lease, timers)
        lease.end()

    asyncio.run(run())


def test_an_offer_is_forgotten_after_a_while(memory: Memfd, monkeypatch: pytest.MonkeyPatch) -> None:
    def test(lease: Lease, timers: list[Callable[[], None]]) -> None:
        before = descriptors()
        assert lease.answer(offer(memory)).HasField("challenge")
        timers.pop()()
        assert descriptors() == before
        refused = lease.answer(pb.HoldRequest(proof=pb.RegionProof(tag=1))).refused
        assert "no offer of this tag was made in the last 0.25 s" in refused.status.message
        assert lease.answer(offer(memory)).HasField("challenge")

    with_lease(monkeypatch, test)


def test_the_end_of_an_offer_is_not_that_of_a_later_one_with_its_tag(
    memory: Memfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def test(lease: Lease, timers: list[Callable[[], None]]) -> None:
        lease.answer(offer(memory))
        lease.answer(pb.HoldRequest(release=pb.RegionRelease(tag=1)))
        challenge = lease.answer(offer(memory)).challenge
        timers[0]()
        memory.write(challenge.nonce)
        assert lease.answer(pb.HoldRequest(proof=pb.RegionProof(tag=1))).HasField("held")
        timers[1]()
        assert lease.answer(pb.HoldRequest(release=pb.RegionRelease(tag=1))).HasField("released")

    with_lease(monkeypatch, test)


@pytest.mark.parametrize("step", ["proof", "wrong proof", "release", "end"])
def test_no_descriptor_is_left(memory: Memfd, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def test(lease: Lease, _: list[Callable[[], None]]) -> None:
        before = descriptors()
        challenge = lease.answer(offer(memory)).challenge
        assert descriptors() == before + 1
        if step == "end":
            lease.end()
        elif step == "release":
            lease.answer(pb.HoldRequest(release=pb.RegionRelease(tag=1)))
        else:
            memory.write(challenge.nonce if step == "proof" else bytes(len(challenge.nonce)))
            lease.answer(pb.HoldRequest(proof=pb.RegionProof(tag=1)))
        assert descriptors() == before + (step == "proof")  # the mapping has one of its own

    with_lease(monkeypatch, test)
