"""The blocking client's connection: its channels, and a call that is tried again."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakSet

import grpc

from convolver.client import _client_shared as shared
from convolver.client._channels import LOOK
from convolver.client._connection import ClientBase, blocking_channels, left, place_of
from convolver.client._retries import Tries
from convolver.client._shared_memory_sync import SharedMemory
from convolver.client.errors import DeadlineExceeded, ServiceUnavailable
from convolver.core.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from convolver.client._channels import BlockingChannels
    from convolver.client._embedded import EmbeddedServer
    from convolver.core.parameters import Parameters
    from convolver.core.tensors import Array

T = TypeVar("T")


class BlockingConnection(ClientBase):
    """Channels, and a call that is tried again."""

    def __init__(self, address: str | None = None, *, timeout: float | None = 60.0, hedge: bool = False) -> None:
        super().__init__(address, timeout=timeout, hedge=hedge)
        self._embedded: EmbeddedServer | None = None
        self._channels: BlockingChannels | None = None
        self._shared_memory = SharedMemory()
        self._process = os.getpid()
        self._renew()
        _ALL.add(self)

    def _renew(self) -> None:
        """In a forked process, where nobody is left who could release the lock."""
        self._lock, self._closing = threading.Lock(), threading.Event()

    @property
    def address(self) -> str:
        """Where calls go. Starts the embedded server if there is no other."""
        with self._lock:
            return self._target()

    def close(self) -> None:
        """Ends the connection, and the embedded server once its last client is closed. Calls in flight fail with
        ServiceUnavailable, later ones with RuntimeError; closing again does nothing.
        """
        with self._lock:
            self._closed = True
            self._closing.set()
            if self._process == os.getpid():
                self._shared_memory.close()
            for channel in self._channels.all if self._channels else ():
                channel.close()
            self._channels = None
            if self._embedded is not None:
                self._embedded.release()
            self._embedded = None

    def empty(self, shape: int | Sequence[int], dtype: str = "float32") -> Array:
        """An array that travels to a server on this host at no cost where that shares memory; else, or where it is
        small, an ordinary one. Its values are undefined. Raises InvalidConvolution for what is no shape or dtype.
        """
        with self._lock:
            self._check_open()
            self._check_process()
            return self._shared_memory.pool.empty(shape, dtype)

    def _repeated(
        self,
        once: Callable[[BlockingChannels, float | None], T],
        parameters: Parameters,
        channel: grpc.Channel | None,
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
            channels, address = self._connected()
            try:
                with failures(address, timeout):
                    return once(channels, left(timeout, begin))
            except (Overloaded, DeadlineExceeded, ServiceUnavailable) as error:
                tries = tries or Tries(self._budget, timeout, begin)
                by_grpc = grpc_repeats and channel is None
                tries.note(error, place_of(address, channels, channel), by_grpc=by_grpc)
                if isinstance(error, Overloaded):
                    pause = tries.after_overload(error)
                    is_again = pause is not None and not self._closing.wait(pause)
                else:
                    is_again = (
                        isinstance(error, ServiceUnavailable)
                        and channel is None  # else whoever calls knows another server
                        and not (by_grpc and channels.is_ready([channels.together]))  # then gRPC has tried enough
                        and self._recovers(tries, channels, [channels.together])
                    )
                if self._closed:
                    raise ServiceUnavailable(f"{address}: the client was closed") from error
                if not is_again:
                    raise

    def _recovers(self, tries: Tries, channels: BlockingChannels, needed: Sequence[grpc.Channel]) -> bool:
        """Whether to try again, once one of the needed channels is connected, or there are others."""
        wait = tries.after_break()
        if wait is None:
            return False
        self._closing.wait(wait.pause)
        while not self._closed and time.monotonic() < wait.until:
            if self._connected()[0] is not channels or channels.is_ready(needed):
                return True
            self._closing.wait(LOOK)
        return False

    def _connected(self) -> tuple[BlockingChannels, str]:
        """The channels of this process, made when they are first needed and again after a fork, and where they lead."""
        with self._lock:
            address = self._target()
            self._check_process()
            if self._channels is None:
                self._channels = blocking_channels(address)
                self._shared_memory.address = address
            return self._channels, address

    def _check_process(self) -> None:
        """After a fork nothing of the parent's is used."""
        if self._process != os.getpid():
            self._channels, self._shared_memory, self._process = None, SharedMemory(), os.getpid()

    def _target(self) -> str:
        self._check_open()
        if self._given is not None:
            return self._given
        if self._embedded is not None and self._embedded.own and not self._embedded.alive:
            self._embedded.release()  # it died, and whoever calls next gets another
            self._embedded = self._channels = None
        if self._embedded is None:
            from convolver.client import _embedded

            self._embedded = _embedded.acquire()
        return self._embedded.address


@contextmanager
def failures(address: str, timeout: float | None) -> Iterator[None]:
    """Raises what a failed call means."""
    try:
        yield
    except grpc.RpcError as failure:
        raise shared.error_of(failure, address, timeout) from failure
    except grpc.FutureCancelledError as failure:
        raise ServiceUnavailable(f"{address}: the client was closed") from failure
    except ValueError as failure:
        if not {"closed", "channel"} <= set(re.findall(r"\w+", str(failure).lower())):
            raise  # the caller's own
        raise RuntimeError("the client is closed") from failure


_ALL: WeakSet[BlockingConnection] = WeakSet()


def _renew_all() -> None:
    for connection in _ALL:
        connection._renew()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_renew_all)
