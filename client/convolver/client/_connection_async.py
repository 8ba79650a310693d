"""The asynchronous client's connection: channels, calls, and which way a request takes."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc

from convolver.client import _answers as answers
from convolver.client import _chunks_async as chunks
from convolver.client import _client_shared as shared
from convolver.client import _held_layers as held_layers
from convolver.client import _layers_async as layers
from convolver.client._connection import PATHS, ClientBase, asynchronous_channels, left, targets_of
from convolver.client._layers_async import AsyncServer
from convolver.client._map_async import Stream
from convolver.client._shared_memory import is_worth_sharing, may_be_here
from convolver.client._shared_memory_async import AsyncSharedMemory
from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from convolver.client._channels import AsynchronousChannels
    from convolver.client._composition import Composition, HeldWeights
    from convolver.client._embedded import EmbeddedServer
    from convolver.client._requests import Reply, Request
    from convolver.core.parameters import Parameters
    from convolver.core.tensors import Array

T = TypeVar("T")


class AsynchronousConnection(ClientBase):
    """What `AsyncClient` calls through."""

    def __init__(self, address: str | None = None, *, timeout: float | None = 60.0) -> None:
        super().__init__(address, timeout=timeout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: asyncio.Future[EmbeddedServer] | None = None
        self._channels: AsynchronousChannels | None = None
        self._shared_memory = AsyncSharedMemory()
        self._address = ""

    @property
    async def address(self) -> str:
        """Where calls go. Starts the embedded server if there is no other."""
        self._check_open()
        self._check_loop()
        if self._given is not None:
            return self._given
        if self._start is None or _failed(self._start):
            self._start = asyncio.get_running_loop().run_in_executor(None, _server_instead_of, self._start)
        server = await asyncio.shield(self._start)  # others may wait for it too
        self._check_open()
        return server.address

    async def close(self) -> None:
        """Ends the connection, and the embedded server once its last client is closed. Calls in flight fail with
        ServiceUnavailable, later ones with RuntimeError; closing again does nothing.
        """
        if self._closed:
            return
        self._check_loop()
        self._closed = True
        self._shared_memory.close()
        for channel in self._channels.all if self._channels else ():
            await channel.close()
        self._channels = None
        if self._start is not None:
            await asyncio.wait([self._start])
            if not self._start.exception():
                await asyncio.to_thread(self._start.result().release)

    def empty(self, shape: int | Sequence[int], dtype: str = "float32") -> Array:
        """An array that travels to a server on this host at no cost where that shares memory; else, or where it is
        small, an ordinary one. Its values are undefined. Raises InvalidConvolution for what is no shape or dtype.
        """
        self._check_open()
        return self._shared_memory.pool.empty(shape, dtype)

    async def _of_one(self, ask: Callable[[AsyncServer], Awaitable[T]], parameters: Parameters) -> T:
        """What `ask` gives, whose calls all go to one server: the first in turn that is there."""
        channels, _ = await self._connected()
        *others, last = await channels.in_turn(self._seconds(parameters))
        for channel in others:
            try:
                return await ask(self._server(channel))
            except ServiceUnavailable:
                if self._closed:
                    raise
        return await ask(self._server(last))

    async def _servers(self) -> list[AsyncServer]:
        channels, _ = await self._connected()
        return list(map(self._server, channels.each))

    def _server(self, channel: grpc.aio.Channel) -> AsyncServer:
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
    ) -> bytes:
        """The answer's message, within the call's timeout since `begin`, or since now."""
        timeout = self._seconds(parameters)
        rest = timeout if begin is None else left(timeout, begin)
        channels, address = await self._connected()
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channels.unary(PATHS[method], channel)
        with self._failures(address, timeout):
            return await call(request, timeout=rest)

    async def _exchange(
        self, request: Request, parameters: Parameters, *, channel: grpc.aio.Channel | None = None
    ) -> Reply:
        """The answer, by the way that suits its size."""
        begin = time.monotonic()
        reply = await self._shared(request, parameters, channel, begin) if is_worth_sharing(request) else None
        if reply is not None:
            return reply
        if request.is_small:
            response = await self._call("Convolve", request.message, parameters, channel=channel, begin=begin)
            return answers.unary_reply(response, request.out)
        timeout = self._seconds(parameters)
        channels, address = await self._connected()
        chosen = channel or channels.together
        with self._failures(address, timeout):
            return await chunks.exchanged(chosen, request, left(timeout, begin), repeats=chosen is channels.together)

    async def _shared(
        self, request: Request, parameters: Parameters, channel: grpc.aio.Channel | None, begin: float
    ) -> Reply | None:
        """The answer by way of shared memory; None where that is not to be had."""
        timeout = self._seconds(parameters)
        channels, address = await self._connected()
        if not may_be_here(address):
            return None
        chosen = channel or channels.together
        send = partial(self._call, "Convolve", parameters=parameters, channel=chosen, begin=begin)
        with self._failures(address, timeout):
            return await self._shared_memory.exchanged(chosen, request, timeout, send)

    async def _put(self, held: HeldWeights, parameters: Parameters) -> None:
        await layers.put(await self._servers(), held, parameters)

    async def _put_on(self, channel: grpc.aio.Channel, held: HeldWeights, parameters: Parameters) -> None:
        timeout = self._seconds(parameters)
        _, address = await self._connected()
        call: grpc.aio.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(PATHS["PutLayer"])
        with self._failures(address, timeout):
            await call(held_layers.put_requests(held), timeout=timeout)

    @asynccontextmanager
    async def _open_stream(self, composition: Composition) -> AsyncIterator[Stream]:
        timeout = self._seconds(composition.parameters)
        channels, address = await self._connected()
        channel = (await channels.in_turn(timeout))[0] if composition.held else channels.together
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveStream"])
        with self._failures(address, timeout):
            call = stream()
            try:
                yield Stream(call, address, timeout, lambda held: self._put_on(channel, held, composition.parameters))
            finally:
                call.cancel()  # which does nothing to one that has ended

    @contextmanager
    def _failures(self, address: str, timeout: float | None) -> Iterator[None]:
        """Raises what a failed call means."""
        try:
            yield
        except grpc.RpcError as failure:
            raise shared.error_of(failure, address, timeout) from failure
        except asyncio.CancelledError:
            if self._closed and not _is_cancelled():
                raise ServiceUnavailable(f"{address}: the client was closed") from None
            raise

    async def _connected(self) -> tuple[AsynchronousChannels, str]:
        """The channels, made when they are first needed and again for another embedded server, and where they lead."""
        address = await self.address
        if self._channels is not None and self._address == address:
            return self._channels, address
        targets = await asyncio.to_thread(targets_of, address) if "," in address else targets_of(address)
        self._check_open()
        if self._channels is None or self._address != address:  # another task was not faster
            self._channels, self._address = asynchronous_channels(targets), address
        return self._channels, address

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise RuntimeError("the client belongs to another event loop: each loop needs an AsyncClient of its own")


def _server_instead_of(ended: asyncio.Future[EmbeddedServer] | None) -> EmbeddedServer:
    from convolver.client import _embedded

    if ended is not None and not ended.exception():
        ended.result().release()
    return _embedded.acquire()


def _failed(start: asyncio.Future[EmbeddedServer]) -> bool:
    """Whether it has led to no server, or to one that died."""
    return start.done() and (start.exception() is not None or not start.result().alive)


def _is_cancelled() -> bool:
    """Whether somebody cancels the running task; else it is gRPC that has cancelled the call."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
