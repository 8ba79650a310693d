"""Requests whose tensors are in shared memory, and the steps of a Hold stream, whatever the client's colour."""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import grpc
import numpy as np
from google.rpc import status_pb2 as google_status_pb2

from convolver.client import _client_shared as shared
from convolver.client._answers import headers
from convolver.client._regions import SMALL, Memory, Place, Pool
from convolver.client._requests import Reply, Request, enveloped
from convolver.core import dtypes, plan_codec
from convolver.core.errors import BackendFailure, InvalidConvolution, LimitExceeded, Overloaded
from convolver.core.stack_plan import tensor_bytes
from convolver.core.status import from_status
from convolver.core.wire import join, split
from convolver.v1 import convolution_pb2, tensor_pb2
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import shared_memory_service_pb2 as hold_pb

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from convolver.core.errors import ConvolverError, Unsupported
    from convolver.core.tensors import Array

HOLD = "/convolver.v1.SharedMemoryService/Hold"

WORTH_SHARING = 1 << 18
"""Bytes of a request or of an answer from which on shared memory is faster than a message (docs/shared-memory.md)."""

HOLD_SECONDS = 2.0
"""The longest wait for an answer to an offer, which takes less than a millisecond."""

PAUSE, LONG_PAUSE = 1.0, 10.0
"""Seconds until an offer is made again, where there was no room, and where one was refused for another reason or not
answered."""

TRIES = 2
"""How often a request is sent whose regions the server does not know, as after its restart."""

_HOPELESS = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED)


class SharedRequest:
    """A request with a place in shared memory for each of its large tensors and for its answer."""

    def __init__(self, request: Request, places: Sequence[Place | None], copied: set[int], answer: list[Place]) -> None:
        self._request, self._places, self._copied, self._answer = request, places, copied, answer

    @classmethod
    def of(cls, request: Request, pool: Pool) -> SharedRequest | None:
        """None where no memory is to be had."""
        places = [pool.find(view) if view.nbytes else None for view in request.data]
        copied = [i for i, view in enumerate(request.data) if places[i] is None and view.nbytes >= SMALL]
        fresh = pool.places([request.data[i].nbytes for i in copied]) if copied else []
        answer = _answer_places(request, pool)
        if fresh is None or answer is None:
            return None
        for i, place in zip(copied, fresh, strict=True):
            places[i] = place
        return cls(request, places, set(copied), answer)

    @property
    def memories(self) -> list[Memory]:
        """What the server has to hold."""
        return list({id(place.memory): place.memory for place in (*self._places, *self._answer) if place}.values())

    def message(self, ids: Mapping[Memory, str]) -> bytes:
        """The ConvolveRequest. What is not in shared memory is copied there now, or travels with it."""
        for i in self._copied:
            np.copyto(_place(self._places[i]).data, np.asarray(self._request.data[i]))
        convolution = convolution_pb2.Convolution.FromString(self._request.convolution)
        for source, place in zip(_sources(convolution), self._places, strict=True):
            if place:
                source.region.CopyFrom(_region(place, ids))
        convolution.output_regions.extend(_region(place, ids) for place in self._answer)
        left = [view for view, place in zip(self._request.data, self._places, strict=True) if place is None]
        return join(enveloped(convolution.SerializeToString()), left)

    def reply(self, response: bytes) -> Reply:
        """What a ConvolveResponse brings, in the memory where the server has written it."""
        known = self._request.described.answer
        with shared.blaming_the_server():
            head, entries = split(response)
            result = pb.ConvolveResponse.FromString(head).result
            plan = result.plan.SerializeToString()
            if entries or headers(plan) != known:
                raise ValueError(f"it has {len(entries)} tensors beside {headers(plan)}, not {known} in shared memory")
            for place, (dtype, _) in zip(self._answer, known, strict=True):
                if dtype == "bool" and place.bytes and place.data.max() > 1:
                    raise ValueError("a bool is neither 0 nor 1")
            report = plan_codec.report_from_proto(result.report)
        return Reply(plan, report, self._tensors())

    def spoil(self) -> None:
        """The call has failed, and the server may still write its answer: nobody else may get that memory."""
        for place in self._answer:
            place.memory.is_spoilt = True

    def _tensors(self) -> list[Array]:
        out, known = self._request.out, self._request.described.answer
        tensors: list[Array] = [
            place.data.view(dtypes.TABLE[dtype].numpy).reshape(shape)
            for place, (dtype, shape) in zip(self._answer, known, strict=True)
        ]
        if out is None:
            return tensors
        if not np.may_share_memory(out.array, tensors[0]):
            out.take(*tensors)
        return [out.array]


def _answer_places(request: Request, pool: Pool) -> list[Place] | None:
    if request.out is not None:
        own = pool.find(request.out.array.reshape(-1).view(np.uint8).data)
        if own is not None:
            return [own]
    return pool.places(list(map(tensor_bytes, request.described.answer)))


def _sources(convolution: convolution_pb2.Convolution) -> Iterator[tensor_pb2.TensorSource]:
    """Of each tensor that is sent, in the order of tensors."""
    return (source for source in _all_sources(convolution) if source.WhichOneof("source") != "omitted")


def _all_sources(convolution: convolution_pb2.Convolution) -> Iterator[tensor_pb2.TensorSource]:
    for layer in convolution.layers:
        if layer.HasField("definition"):
            yield layer.weight_source
            if layer.definition.HasField("bias"):
                yield layer.bias_source
    yield convolution.input_source
    if convolution.HasField("gradients"):
        yield convolution.gradients.grad_output_source


def _region(place: Place, ids: Mapping[Memory, str]) -> tensor_pb2.SharedRegion:
    return tensor_pb2.SharedRegion(id=ids[place.memory], offset=place.offset, length=place.bytes)


def _place(place: Place | None) -> Place:
    assert place is not None, "what is copied has a place"  # noqa: S101
    return place


def is_lost(error: InvalidConvolution | Unsupported, lease: Lease) -> bool:
    """Whether it is the region that the server refuses, since it does not hold it: it is another one by now, or the
    stream has ended.
    """
    return lease.has_ended or (isinstance(error, InvalidConvolution) and error.field.endswith(".id"))


def is_worth_sharing(request: Request) -> bool:
    """Whether it, or its answer, is large enough."""
    return max(request.data_bytes, request.described.answer_bytes) >= WORTH_SHARING


def may_be_here(address: str) -> bool:
    """Whether the server may be on this host, by its address."""
    if address.startswith("unix:"):
        return True
    host = re.sub(r"^dns:(///)?", "", address).rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Prospects:
    """Whether an offer of memory is worth while, as far as the server's answers tell."""

    def __init__(self) -> None:
        self._is_hopeless, self._later = False, 0.0
        self._largest: float = float("inf")

    def are_good(self, memories: Sequence[Memory]) -> bool:
        """Whether it may hold all of these."""
        return (
            not self._is_hopeless
            and time.monotonic() >= self._later
            and all(memory.bytes <= self._largest for memory in memories)
        )

    def refused(self, error: ConvolverError) -> None:
        """An offer was refused: for now, for its size, or since the server cannot reach this process's memory, or holds
        it still for a stream that has just ended.
        """
        if isinstance(error, Overloaded):
            self._later = time.monotonic() + PAUSE
        elif isinstance(error, LimitExceeded):
            self._largest = min(self._largest, error.limit)
        else:
            self._later = time.monotonic() + LONG_PAUSE

    def ended(self, code: grpc.StatusCode | None) -> None:
        """The stream has ended."""
        self._is_hopeless = self._is_hopeless or code in _HOPELESS

    def unanswered(self) -> None:
        """The server did not answer in time."""
        self._later = time.monotonic() + LONG_PAUSE


class Lease:
    """What is held by one stream, and the messages of its steps. The memory is the pool's: a stream that has ended may
    stay for a while, as where its reader ends with an error.
    """

    def __init__(self) -> None:
        self.ids = WeakKeyDictionary[Memory, str]()
        self.has_ended = False
        self._tags = WeakKeyDictionary[Memory, int]()
        self._numbers = itertools.count(1)

    def offer(self, memory: Memory) -> tuple[int, bytes]:
        """Its tag, and the message."""
        tag = next(self._numbers)
        offer = hold_pb.RegionOffer(tag=tag, process_id=os.getpid(), descriptor=memory.descriptor, bytes=memory.bytes)
        return tag, hold_pb.HoldRequest(offer=offer).SerializeToString()

    def prove(self, memory: Memory, answer: hold_pb.HoldResponse) -> bytes:
        """The next message. Raises the server's refusal."""
        _check(answer)
        memory.prove(answer.challenge.nonce)
        return hold_pb.HoldRequest(proof=hold_pb.RegionProof(tag=answer.challenge.tag)).SerializeToString()

    def hold(self, memory: Memory, answer: hold_pb.HoldResponse) -> None:
        """It is held. Raises the server's refusal."""
        _check(answer)
        self.ids[memory], self._tags[memory] = answer.held.id, answer.held.tag

    def release(self, memory: Memory) -> bytes | None:
        """The message that lets go of it; None where it is not held."""
        self.ids.pop(memory, None)
        tag = self._tags.pop(memory, None)
        if tag is None:
            return None
        return hold_pb.HoldRequest(release=hold_pb.RegionRelease(tag=tag)).SerializeToString()


def tag_of(answer: hold_pb.HoldResponse) -> int:
    """Of the offer that it answers."""
    step = answer.WhichOneof("step")
    return getattr(answer, step).tag if step else 0


def _check(answer: hold_pb.HoldResponse) -> None:
    if answer.HasField("refused"):
        status = google_status_pb2.Status.FromString(answer.refused.status.SerializeToString())
        raise from_status(status) or BackendFailure(f"a region was refused: {status.message}")
