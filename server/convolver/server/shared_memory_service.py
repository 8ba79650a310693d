"""convolver.v1.SharedMemoryService over bytes, as ConvolutionService: no serialisers, one table of errors."""

from __future__ import annotations

import asyncio
import ipaddress
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote

import grpc

from convolver.core.errors import InvalidConvolution
from convolver.core.status import to_status
from convolver.server._errors_interceptor import as_error
from convolver.server.messages import known
from convolver.v1 import shared_memory_service_pb2 as pb
from convolver.v1 import status_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from convolver.server.calls import Calls
    from convolver.server.regions import Candidate, Region, Registry

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["SharedMemoryService"]

PROOF_SECONDS = 10.0
"""In which a caller has to write the challenge's bytes: until then the server holds a descriptor for it."""

_Context = grpc.aio.ServicerContext[bytes, bytes]


class SharedMemoryService:
    """Regions for callers on this host."""

    def __init__(self, registry: Registry, calls: Calls) -> None:
        self._registry, self._calls = registry, calls

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        table: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Hold": grpc.stream_stream_rpc_method_handler(self.hold)
        }
        return grpc.method_handlers_generic_handler(DESCRIPTOR.full_name, table)

    async def hold(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        """Holds regions until the caller leaves, or the server drains."""
        self._calls.follow(context)
        if not is_on_this_host(context.peer()):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "memory is shared with callers on this host alone")
        lease = Lease(self._registry)
        answers = _Answers(lease, context)
        try:
            drained = await self._calls.unless_draining(answers.give(requests))
            await answers.finish()
            if drained:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining: try another")
        finally:
            lease.end()


class Lease:
    """The regions of one stream, by the caller's tags. It belongs to one event loop."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._candidates: dict[int, Candidate] = {}
        self._regions: dict[int, Region] = {}

    def answer(self, request: pb.HoldRequest) -> pb.HoldResponse:
        """The answer to a step. Raises InvalidConvolution where there is none."""
        step = request.WhichOneof("step")
        if step is None:
            raise InvalidConvolution("a message has no step: an offer, a proof or a release", "step")
        tag = getattr(request, step).tag
        try:
            if step == "offer":
                return self._challenged(request.offer)
            return self._proven(tag) if step == "proof" else self._released(tag)
        except Exception as error:  # noqa: BLE001  # this is the edge, as in the interceptor
            status = status_pb2.Status.FromString(to_status(as_error(error)).SerializeToString())
            return pb.HoldResponse(refused=pb.RegionRefused(tag=tag, status=status))

    def end(self) -> None:
        """Lets go of all."""
        for tag in [*self._candidates]:
            self._drop(tag)
        regions, self._regions = [*self._regions.values()], {}
        for region in regions:
            self._registry.release(region)
        self._unmap(regions)

    def _challenged(self, offer: pb.RegionOffer) -> pb.HoldResponse:
        if offer.tag in self._candidates or offer.tag in self._regions:
            raise InvalidConvolution(f"tag is {offer.tag}, which a region of this stream has already", "tag")
        candidate = self._registry.open(offer.process_id, offer.descriptor, offer.bytes)
        self._candidates[offer.tag] = candidate
        asyncio.get_running_loop().call_later(PROOF_SECONDS, self._expire, offer.tag, candidate)
        return pb.HoldResponse(challenge=pb.RegionChallenge(tag=offer.tag, nonce=candidate.nonce))

    def _proven(self, tag: int) -> pb.HoldResponse:
        candidate = self._candidates.get(tag)
        if candidate is None:
            text = f"tag is {tag}, but no offer of this tag was made in the last {PROOF_SECONDS:g} s"
            raise InvalidConvolution(text, "tag")
        try:
            region = self._registry.hold(candidate)
        except BaseException:  # there is one attempt
            self._drop(tag)
            raise
        del self._candidates[tag]
        candidate.close()
        self._regions[tag] = region
        return pb.HoldResponse(held=pb.RegionHeld(tag=tag, id=region.id))

    def _released(self, tag: int) -> pb.HoldResponse:
        if tag in self._candidates:
            self._drop(tag)
        elif tag in self._regions:
            region = self._regions.pop(tag)
            self._registry.release(region)
            self._unmap([region])
        else:
            raise InvalidConvolution(f"tag is {tag}, which no region of this stream has", "tag")
        return pb.HoldResponse(released=pb.RegionRelease(tag=tag))

    def _unmap(self, regions: list[Region]) -> None:
        """Elsewhere: to give a gigabyte back takes the system a tenth of a second."""
        if regions:
            asyncio.get_running_loop().run_in_executor(None, self._registry.unmap, regions)

    def _expire(self, tag: int, candidate: Candidate) -> None:
        if self._candidates.get(tag) is candidate:
            self._drop(tag)

    def _drop(self, tag: int) -> None:
        candidate = self._candidates.pop(tag)
        candidate.close()
        self._registry.forget(candidate.bytes)


class _Answers:
    """Answers each request of a stream before the next is read."""

    def __init__(self, lease: Lease, context: _Context) -> None:
        self._lease, self._context = lease, context
        self._writing: asyncio.Task[None] | None = None

    async def give(self, requests: AsyncIterator[bytes]) -> None:
        async for request in requests:
            answer = self._lease.answer(known(pb.HoldRequest, request))
            self._writing = asyncio.create_task(self._write(answer.SerializeToString()))
            await asyncio.shield(self._writing)  # so that `finish` has what to wait for

    async def finish(self) -> None:
        """Returns when the last answer is out."""
        if self._writing is not None:
            await self._writing

    async def _write(self, answer: bytes) -> None:
        with suppress(grpc.aio.InternalError):  # the caller has left, and gRPC cancels the call
            await self._context.write(answer)


def is_on_this_host(peer: str) -> bool:
    """Whether a peer, as gRPC names it, came by a unix socket or by the loopback interface. A proxy on this host hides
    who is behind it; those will fail to open or to prove.
    """
    kind, _, rest = peer.partition(":")
    if kind in ("unix", "unix-abstract"):
        return True
    try:
        address = ipaddress.ip_address(unquote(rest).rpartition(":")[0].strip("[]"))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
