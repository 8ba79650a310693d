"""The asynchronous client's connection: its channels, and a call that is tried again."""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import grpc

from convolver.client import _client_shared as shared
from convolver.client._channels import LOOK
from convolver.client._connection import ClientBase, all_told, asynchronous_channels, left, place_of, targets_of
from convolver.client._retries import Tries
from convolver.client._shared_memory_async import AsyncSharedMemory
from convolver.client.errors import DeadlineExceeded, ServiceUnavailable
from convolver.core.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from convolver.client._channels import AsynchronousChannels
    from convolver.client._embedded import EmbeddedServer
    from convolver.core.parameters import Parameters
    from convolver.core.tensors import Array

T = TypeVar("T")


class AsynchronousConnection(ClientBase):
    """Channels, and a call that is tried again."""

    def __init__(self, address: str | None = None, *, timeout: float | None = 60.0, hedge: bool = False) -> None:
        super().__init__(address, timeout=timeout, hedge=hedge)
        self._closing = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._start: asyncio.Future[EmbeddedServer] | None = None
        self._channels: AsynchronousChannels | None = None
        self._end: asyncio.Task[None] | None = None
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
        self._check_still_open()
        return server.address

    async def close(self) -> None:
        """Ends the connection, and the embedded server once its last client is closed. Calls in flight fail with
        ServiceUnavailable, later ones with RuntimeError; closing again does nothing.
        """
        if self._end is None:
            self._check_loop()
            self._closed = True
            self._closing.set()
            self._shared_memory.close()
            channels, self._channels = self._channels, None
            for channel in channels.all if channels else ():
                await channel.close()  # which does not wait, so that all of them are closed whoever cancels this
            self._end = asyncio.create_task(self._ended())
        if not self._end.done():
            await asyncio.shield(self._end)  # others may wait for it too

    async def _ended(self) -> None:
        """Waits until nothing of the client is left; gives the embedded server back, where there is one."""
        await self._shared_memory.ended()
        if self._address:  # it has had channels
            await all_told()
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

    async def _repeated(
        self,
        once: Callable[[AsynchronousChannels, float | None], Awaitable[T]],
        parameters: Parameters,
        channel: grpc.aio.Channel | None,
        begin: float | None = None,
        *,
        grpc_repeats: bool = True,
    ) -> T:
        """What `once` gives, within the call's timeout since `begin`, or since now; tried again as `Tries` has it."""
        self._budget.add_call()
        if begin is not None:
            self._check_still_open()
        timeout, begin = self._seconds(parameters), begin or time.monotonic()
        tries: Tries | None = None
        while True:
            channels, address = await self._connected()
            try:
                with self._failures(address, timeout):
                    return await once(channels, left(timeout, begin))
            except (Overloaded, DeadlineExceeded, ServiceUnavailable) as error:
                tries = tries or Tries(self._budget, timeout, begin)
                by_grpc = grpc_repeats and channel is None
                tries.note(error, place_of(address, channels, channel), by_grpc=by_grpc)
                if isinstance(error, Overloaded):
                    pause = tries.after_overload(error)
                    is_again = pause is not None and not await self._pauses(pause)
                else:
                    is_again = (
                        isinstance(error, ServiceUnavailable)
                        and channel is None  # else whoever calls knows another server
                        and not (by_grpc and channels.is_ready([channels.together]))  # then gRPC has tried enough
                        and await self._recovers(tries, channels, [channels.together])
                    )
                if self._closed:
                    raise ServiceUnavailable(f"{address}: the client was closed") from error
                if not is_again:
                    raise

    async def _recovers(self, tries: Tries, channels: AsynchronousChannels, needed: Sequence[grpc.aio.Channel]) -> bool:
        """Whether to try again, once one of the needed channels is connected, or there are others."""
        wait = tries.after_break()
        if wait is None:
            return False
        await self._pauses(wait.pause)
        while not self._closed and time.monotonic() < wait.until:
            if (await self._connected())[0] is not channels or channels.is_ready(needed):
                return True
            await self._pauses(LOOK)
        return False

    async def _pauses(self, seconds: float) -> bool:
        """Waits; true, at once, where the client is closed meanwhile."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), seconds)
        return self._closed

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
        self._check_still_open()
        if self._channels is None or self._address != address:  # another task was not faster
            self._channels, self._address = asynchronous_channels(targets), address
            self._shared_memory.address = address
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
