"""Calls of SharedMemoryService as a stranger writes them, and memory to be shared."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

import grpc
import pytest
from google.rpc import status_pb2
from tests.contract import refusal
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.core.status import from_status
from convolver.v1 import shared_memory_service_pb2 as pb
from convolver.v1 import tensor_pb2

if TYPE_CHECKING:
    from tests.conftest import RunningServer
    from tests.contract import Refusal

    from convolver.core.errors import ConvolverError

SERVICE = "convolver.v1.SharedMemoryService"
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
PAGE = 4096
BUDGET = 64 * 2**20
"""Bytes that the callers of the server may share that the fixture `sharing_server` starts."""


class Memfd:
    """A memfd of this process."""

    def __init__(self, size: int = PAGE, seals: int = SEALS, flags: int = 0) -> None:
        self.descriptor = os.memfd_create("test", os.MFD_ALLOW_SEALING | flags)
        os.ftruncate(self.descriptor, size)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        self.bytes = size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def write(self, data: bytes, offset: int = 0) -> None:
        os.pwrite(self.descriptor, data, offset)

    def read(self, size: int, offset: int = 0) -> bytes:
        return os.pread(self.descriptor, size, offset)


class OpenHold:
    """An open call: each step waits for its answer."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._outgoing = SimpleQueue[bytes | None]()
        call: Any = channel.stream_stream(f"/{SERVICE}/Hold")
        self.call = call(iter(self._outgoing.get, None), timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._outgoing.put(None)
        self.call.cancel()

    def send(self, message: bytes) -> None:
        self._outgoing.put(message)

    def close(self) -> None:
        """Says that there are no more steps."""
        self._outgoing.put(None)

    def step(self, **step: Any) -> pb.HoldResponse:  # noqa: ANN401  # any step
        self.send(pb.HoldRequest(**step).SerializeToString())
        return pb.HoldResponse.FromString(next(self.call))

    def offer(self, tag: int, descriptor: int, size: int = PAGE, process: int | None = None) -> pb.HoldResponse:
        process = os.getpid() if process is None else process
        return self.step(offer=pb.RegionOffer(tag=tag, process_id=process, descriptor=descriptor, bytes=size))

    def prove(self, tag: int) -> pb.HoldResponse:
        return self.step(proof=pb.RegionProof(tag=tag))

    def release(self, tag: int) -> pb.HoldResponse:
        return self.step(release=pb.RegionRelease(tag=tag))

    def hold(self, tag: int, memory: Memfd) -> str:
        """Shares the memory; its id."""
        offered = self.offer(tag, memory.descriptor, memory.bytes)
        assert offered.WhichOneof("step") == "challenge", offered
        memory.write(offered.challenge.nonce)
        answer = self.prove(tag)
        assert answer.WhichOneof("step") == "held", answer
        return answer.held.id

    def failure(self) -> Refusal:
        """How the call ends, which it does without another answer."""
        with pytest.raises(grpc.RpcError) as caught:
            next(self.call)
        return refusal(caught.value)


def why(answer: pb.HoldResponse) -> ConvolverError:
    """The error that a step was refused with."""
    assert answer.WhichOneof("step") == "refused", answer
    error = from_status(status_pb2.Status.FromString(answer.refused.status.SerializeToString()))
    assert error is not None
    return error


def part(region: str, length: int, offset: int = 0) -> tensor_pb2.SharedRegion:
    return tensor_pb2.SharedRegion(id=region, offset=offset, length=length)


def shared(running: RunningServer) -> tuple[float, float]:
    """(regions, bytes) that the server says are shared."""
    return metric(running, "convolver_shared_regions"), metric(running, "convolver_shared_region_bytes")


def until_nothing_is_shared(running: RunningServer) -> None:
    until(lambda: shared(running) == (0, 0), "all regions to be released")


def mappings(running: RunningServer) -> int:
    """Memfds that the server has mapped."""
    return (Path("/proc") / str(running.process.pid) / "maps").read_text().count("/memfd:")


def descriptors(running: RunningServer) -> int:
    """Memfds that the server has open."""
    found = 0
    for link in (Path("/proc") / str(running.process.pid) / "fd").iterdir():
        try:
            found += str(link.readlink()).startswith("/memfd:")
        except FileNotFoundError:  # closed meanwhile
            continue
    return found
