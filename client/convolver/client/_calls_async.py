"""The asynchronous client's calls: which way a request takes, and to which server."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import grpc

from convolver.client import _answers as answers
from convolver.client import _chunks_async as chunks
from convolver.client import _client_shared as shared
from convolver.client import _held_layers as held_layers
from convolver.client import _layers_async as layers
from convolver.client._connection import PATHS, left
from convolver.client._connection_async import AsynchronousConnection
from convolver.client._hedging import PURE
from convolver.client._hedging_async import hedged
from convolver.client._identity import metadata
from convolver.client._layers_async import AsyncServer
from convolver.client._map_async import Stream
from convolver.client._pipeline import Route
from convolver.client._retries import Tries
from convolver.client._shared_memory import is_worth_sharing, may_be_here
from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from convolver.client._channels import AsynchronousChannels
    from convolver.client._composition import Composition, HeldWeights
    from convolver.client._hedging import Latencies
    from convolver.client._hedging_async import Sent
    from convolver.client._requests import Reply, Request
    from convolver.core.parameters import Parameters

T = TypeVar("T")


class AsynchronousCalls(AsynchronousConnection):
    """What `AsyncClient` calls by."""

    async def _of_one(self, ask: Callable[[AsyncServer], Awaitable[T]], parameters: Parameters) -> T:
        """What `ask` gives, whose calls all go to one server: the first in turn that is there."""
        timeout, begin = self._seconds(parameters), time.monotonic()
        tries = Tries(self._budget, timeout, begin)
        while True:
            channels, address = await self._connected()
            if len(channels.each) == 1:
                return await ask(self._server(None))
            for channel in await self._in_turn(channels, timeout):
                try:
                    return await ask(self._server(channel))
                except ServiceUnavailable as error:
                    tries.note(error, address)
                    failure = error
                    if self._closed:
                        raise
            if not await self._recovers(tries, channels, channels.each):
                raise failure

    async def _in_turn(self, channels: AsynchronousChannels, seconds: float | None) -> list[grpc.aio.Channel]:
        """Those to each server, in turn. Raises ServiceUnavailable where the client was closed while it waited."""
        found = await channels.in_turn(seconds)
        self._check_still_open()
        return found

    async def _servers(self) -> list[AsyncServer]:
        channels, _ = await self._connected()
        return list(map(self._server, channels.each if len(channels.each) > 1 else [None]))

    def _server(self, channel: grpc.aio.Channel | None) -> AsyncServer:
        call, exchange = partial(self._call, channel=channel), partial(self._exchange, channel=channel)
        return AsyncServer(call, exchange, partial(self._put_on, channel))

    async def _call(
        self,
        method: str,
        request: bytes,
        parameters: Parameters,
        *,
        channel: grpc.aio.Channel | None = None,
        begin: float | None = None,
        kind: bytes | None = None,
    ) -> bytes:
        """The answer's message, within the call's timeout since `begin`, or since now. `kind` is of those calls of
        which a second copy may be sent.
        """
        path, kind = PATHS[method], request if method in PURE else kind

        async def once(channels: AsynchronousChannels, seconds: float | None) -> bytes:
            if self._latencies is not None and kind is not None:
                return await self._hedged(channels, channel, path, (request, kind), seconds)
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channels.unary(path, channel)
            return await call(request, timeout=seconds, metadata=metadata())

        return await self._repeated(once, parameters, channel, begin)

    async def _hedged(
        self,
        channels: AsynchronousChannels,
        channel: grpc.aio.Channel | None,
        path: str,
        sent: tuple[bytes, bytes],
        seconds: float | None,
    ) -> bytes:
        """One call of that kind, or two of them. Of several servers they go to different ones."""
        latencies, begin, (request, kind) = cast("Latencies", self._latencies), time.monotonic(), sent
        first = channel or (
            (await self._in_turn(channels, seconds))[0] if len(channels.each) > 1 else channels.together
        )

        def copy(to: grpc.aio.Channel) -> Sent:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channels.unary(path, to)
            return call(request, timeout=left(seconds, begin), metadata=metadata())

        delay = latencies.percentile(kind)
        try:
            response = await hedged(partial(copy, first), partial(copy, channels.beside(first)), delay, self._budget)
        except grpc.RpcError as failure:
            if channel is not None or first is channels.together or not shared.is_unavailable(failure):
                raise
            response = await copy(channels.together)
        latencies.add(kind, time.monotonic() - begin)
        return response

    async def _exchange(
        self, request: Request, parameters: Parameters, *, channel: grpc.aio.Channel | None = None
    ) -> Reply:
        """The answer, by the way that suits its size."""
        self._check_open()
        begin = time.monotonic()
        reply = await self._shared(request, parameters, channel, begin) if is_worth_sharing(request) else None
        if reply is not None:
            return reply
        if request.is_small:
            response = await self._call(
                "Convolve", request.message, parameters, channel=channel, begin=begin, kind=request.convolution
            )
            return answers.unary_reply(response, request.out)

        async def once(channels: AsynchronousChannels, seconds: float | None) -> Reply:
            return await chunks.exchanged(channel or channels.together, request, seconds)

        return await self._repeated(once, parameters, channel, begin, grpc_repeats=False)

    async def _shared(
        self, request: Request, parameters: Parameters, channel: grpc.aio.Channel | None, begin: float
    ) -> Reply | None:
        """The answer by way of shared memory; None where that is not to be had."""
        timeout = self._seconds(parameters)
        channels, address = await self._connected()
        if not may_be_here(address):
            return None
        send = partial(self._call, "Convolve", parameters=parameters, channel=channel, begin=begin)
        with self._failures(address, timeout):
            return await self._shared_memory.exchanged(channel or channels.together, request, timeout, send)

    async def _put(self, held: HeldWeights, parameters: Parameters) -> None:
        await layers.put(await self._servers(), held, parameters)

    async def _put_on(self, channel: grpc.aio.Channel | None, held: HeldWeights, parameters: Parameters) -> None:
        async def once(channels: AsynchronousChannels, seconds: float | None) -> None:
            to = channel or channels.together
            call: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = to.stream_unary(PATHS["PutLayer"])
            await call(held_layers.put_requests(held), timeout=seconds, metadata=metadata())

        await self._repeated(once, parameters, channel)

    async def _open_stream(self, composition: Composition) -> Stream:
        timeout = self._seconds(composition.parameters)
        channels, address = await self._connected()
        channel = (await self._in_turn(channels, timeout))[0] if composition.held else channels.together
        needed = channels.each if composition.held else [channels.together]
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveStream"])
        failures = partial(self._failures, address, timeout)
        with failures():
            call = stream(metadata=metadata())
        return Stream(
            call,
            Route(address, timeout, self._budget),
            failures,
            put=lambda held: self._put_on(channel, held, composition.parameters),
            recovers=lambda tries: self._recovers(tries, channels, needed),
        )
