"""The blocking client's calls: which way a request takes, and to which server."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import grpc

from convolver.client import _answers as answers
from convolver.client import _chunks_sync as chunks
from convolver.client import _client_shared as shared
from convolver.client import _held_layers as held_layers
from convolver.client import _layers_sync as layers
from convolver.client._connection import PATHS, left
from convolver.client._connection_sync import BlockingConnection, failures
from convolver.client._hedging import PURE
from convolver.client._hedging_sync import hedged
from convolver.client._identity import metadata
from convolver.client._layers_sync import Server
from convolver.client._map_sync import Stream
from convolver.client._pipeline import Route
from convolver.client._retries import Tries
from convolver.client._shared_memory import is_worth_sharing, may_be_here
from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from convolver.client._channels import BlockingChannels
    from convolver.client._composition import Composition, HeldWeights
    from convolver.client._hedging import Latencies
    from convolver.client._hedging_sync import Sent
    from convolver.client._requests import Reply, Request
    from convolver.core.parameters import Parameters

T = TypeVar("T")


class BlockingCalls(BlockingConnection):
    """What `Client` calls by."""

    def _of_one(self, ask: Callable[[Server], T], parameters: Parameters) -> T:
        """What `ask` gives, whose calls all go to one server: the first in turn that is there."""
        timeout, begin = self._seconds(parameters), time.monotonic()
        tries = Tries(self._budget, timeout, begin)
        while True:
            channels, address = self._connected()
            if len(channels.each) == 1:
                return ask(self._server(None))
            for channel in self._in_turn(channels, timeout):
                try:
                    return ask(self._server(channel))
                except ServiceUnavailable as error:
                    tries.note(error, address)
                    failure = error
                    if self._closed:
                        raise
            if not self._recovers(tries, channels, channels.each):
                raise failure

    def _in_turn(self, channels: BlockingChannels, seconds: float | None) -> list[grpc.Channel]:
        """Those to each server, in turn. Raises ServiceUnavailable where the client was closed while it waited."""
        found = channels.in_turn(seconds)
        self._check_still_open()
        return found

    def _servers(self) -> list[Server]:
        channels, _ = self._connected()
        return list(map(self._server, channels.each if len(channels.each) > 1 else [None]))

    def _server(self, channel: grpc.Channel | None) -> Server:
        call, exchange = partial(self._call, channel=channel), partial(self._exchange, channel=channel)
        return Server(call, exchange, partial(self._put_on, channel))

    def _call(
        self,
        method: str,
        request: bytes,
        parameters: Parameters,
        *,
        channel: grpc.Channel | None = None,
        begin: float | None = None,
        kind: bytes | None = None,
    ) -> bytes:
        """The answer's message, within the call's timeout since `begin`, or since now. `kind` is of those calls of
        which a second copy may be sent.
        """
        path, kind = PATHS[method], request if method in PURE else kind

        def once(channels: BlockingChannels, seconds: float | None) -> bytes:
            if self._latencies is not None and kind is not None:
                return self._hedged(channels, channel, path, (request, kind), seconds)
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channels.unary(path, channel)
            return call(request, timeout=seconds, metadata=metadata())

        return self._repeated(once, parameters, channel, begin)

    def _hedged(
        self,
        channels: BlockingChannels,
        channel: grpc.Channel | None,
        path: str,
        sent: tuple[bytes, bytes],
        seconds: float | None,
    ) -> bytes:
        """One call of that kind, or two of them. Of several servers they go to different ones."""
        latencies, begin, (request, kind) = cast("Latencies", self._latencies), time.monotonic(), sent
        first = channel or (self._in_turn(channels, seconds)[0] if len(channels.each) > 1 else channels.together)

        def copy(to: grpc.Channel) -> Sent:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channels.unary(path, to)
            return call.future(request, timeout=left(seconds, begin), metadata=metadata())

        delay = latencies.percentile(kind)
        try:
            response = hedged(partial(copy, first), partial(copy, channels.beside(first)), delay, self._budget)
        except grpc.RpcError as failure:
            if channel is not None or first is channels.together or not shared.is_unavailable(failure):
                raise
            response = copy(channels.together).result()
        latencies.add(kind, time.monotonic() - begin)
        return response

    def _exchange(self, request: Request, parameters: Parameters, *, channel: grpc.Channel | None = None) -> Reply:
        """The answer, by the way that suits its size."""
        self._check_open()
        begin = time.monotonic()
        reply = self._shared(request, parameters, channel, begin) if is_worth_sharing(request) else None
        if reply is not None:
            return reply
        if request.is_small:
            response = self._call(
                "Convolve", request.message, parameters, channel=channel, begin=begin, kind=request.convolution
            )
            return answers.unary_reply(response, request.out)

        def once(channels: BlockingChannels, seconds: float | None) -> Reply:
            return chunks.exchanged(channel or channels.together, request, seconds)

        return self._repeated(once, parameters, channel, begin, grpc_repeats=False)

    def _shared(
        self, request: Request, parameters: Parameters, channel: grpc.Channel | None, begin: float
    ) -> Reply | None:
        """The answer by way of shared memory; None where that is not to be had."""
        timeout = self._seconds(parameters)
        channels, address = self._connected()
        if not may_be_here(address):
            return None
        send = partial(self._call, "Convolve", parameters=parameters, channel=channel, begin=begin)
        with failures(address, timeout):
            return self._shared_memory.exchanged(channel or channels.together, request, timeout, send)

    def _put(self, held: HeldWeights, parameters: Parameters) -> None:
        layers.put(self._servers(), held, parameters)

    def _put_on(self, channel: grpc.Channel | None, held: HeldWeights, parameters: Parameters) -> None:
        def once(channels: BlockingChannels, seconds: float | None) -> None:
            to = channel or channels.together
            call: grpc.StreamUnaryMultiCallable[bytes, bytes] = to.stream_unary(PATHS["PutLayer"])
            call(held_layers.put_requests(held), timeout=seconds, metadata=metadata())

        self._repeated(once, parameters, channel)

    def _open_stream(self, requests: Iterator[bytes], composition: Composition) -> Stream:
        timeout = self._seconds(composition.parameters)
        channels, address = self._connected()
        channel = self._in_turn(channels, timeout)[0] if composition.held else channels.together
        needed = channels.each if composition.held else [channels.together]
        stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveStream"])
        in_context = partial(failures, address, timeout)
        with in_context():
            call = stream(requests, metadata=metadata())
        return Stream(
            call,
            Route(address, timeout, self._budget),
            in_context,
            put=lambda held: self._put_on(channel, held, composition.parameters),
            recovers=lambda tries: self._recovers(tries, channels, needed),
        )
