"""The blocking client's connection: channels, calls, and which way a request takes."""

from __future__ import annotations

import os
import re
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import grpc

from convolver.client import _answers as answers
from convolver.client import _chunks_sync as chunks
from convolver.client import _client_shared as shared
from convolver.client import _held_layers as held_layers
from convolver.client import _layers_sync as layers
from convolver.client._connection import PATHS, ClientBase, blocking_channels, left
from convolver.client._layers_sync import Server
from convolver.client._map_sync import Stream
from convolver.client._shared_memory import is_worth_sharing, may_be_here
from convolver.client._shared_memory_sync import SharedMemory
from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from convolver.client._channels import BlockingChannels
    from convolver.client._composition import Composition, HeldWeights
    from convolver.client._embedded import EmbeddedServer
    from convolver.client._requests import Reply, Request
    from convolver.core.parameters import Parameters
    from convolver.core.tensors import Array

T = TypeVar("T")


class BlockingConnection(ClientBase):
    """What `Client` calls through."""

    def __init__(self, address: str | None = None, *, timeout: float | None = 60.0) -> None:
        super().__init__(address, timeout=timeout)
        self._lock = threading.Lock()
        self._embedded: EmbeddedServer | None = None
        self._channels: BlockingChannels | None = None
        self._shared_memory = SharedMemory()
        self._process = os.getpid()

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

    def _of_one(self, ask: Callable[[Server], T], parameters: Parameters) -> T:
        """What `ask` gives, whose calls all go to one server: the first in turn that is there."""
        channels, _ = self._connected()
        *others, last = channels.in_turn(self._seconds(parameters))
        for channel in others:
            try:
                return ask(self._server(channel))
            except ServiceUnavailable:
                if self._closed:
                    raise
        return ask(self._server(last))

    def _servers(self) -> list[Server]:
        channels, _ = self._connected()
        return list(map(self._server, channels.each))

    def _server(self, channel: grpc.Channel) -> Server:
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
    ) -> bytes:
        """The answer's message, within the call's timeout since `begin`, or since now."""
        timeout = self._seconds(parameters)
        rest = timeout if begin is None else left(timeout, begin)
        channels, address = self._connected()
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channels.unary(PATHS[method], channel)
        with _failures(address, timeout):
            return call(request, timeout=rest)

    def _exchange(self, request: Request, parameters: Parameters, *, channel: grpc.Channel | None = None) -> Reply:
        """The answer, by the way that suits its size."""
        begin = time.monotonic()
        reply = self._shared(request, parameters, channel, begin) if is_worth_sharing(request) else None
        if reply is not None:
            return reply
        if request.is_small:
            response = self._call("Convolve", request.message, parameters, channel=channel, begin=begin)
            return answers.unary_reply(response, request.out)
        timeout = self._seconds(parameters)
        channels, address = self._connected()
        chosen = channel or channels.together
        with _failures(address, timeout):
            return chunks.exchanged(chosen, request, left(timeout, begin), repeats=chosen is channels.together)

    def _shared(
        self, request: Request, parameters: Parameters, channel: grpc.Channel | None, begin: float
    ) -> Reply | None:
        """The answer by way of shared memory; None where that is not to be had."""
        timeout = self._seconds(parameters)
        channels, address = self._connected()
        if not may_be_here(address):
            return None
        chosen = channel or channels.together
        send = partial(self._call, "Convolve", parameters=parameters, channel=chosen, begin=begin)
        with _failures(address, timeout):
            return self._shared_memory.exchanged(chosen, request, timeout, send)

    def _put(self, held: HeldWeights, parameters: Parameters) -> None:
        layers.put(self._servers(), held, parameters)

    def _put_on(self, channel: grpc.Channel, held: HeldWeights, parameters: Parameters) -> None:
        timeout = self._seconds(parameters)
        _, address = self._connected()
        call: grpc.StreamUnaryMultiCallable[bytes, bytes] = channel.stream_unary(PATHS["PutLayer"])
        with _failures(address, timeout):
            call(held_layers.put_requests(held), timeout=timeout)

    @contextmanager
    def _open_stream(self, requests: Iterator[bytes], composition: Composition) -> Iterator[Stream]:
        timeout = self._seconds(composition.parameters)
        channels, address = self._connected()
        channel = channels.in_turn(timeout)[0] if composition.held else channels.together
        stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(PATHS["ConvolveStream"])
        with _failures(address, timeout):
            call = stream(requests)
            try:
                yield Stream(call, address, timeout, lambda held: self._put_on(channel, held, composition.parameters))
            finally:
                call.cancel()  # which does nothing to one that has ended

    def _connected(self) -> tuple[BlockingChannels, str]:
        """The channels of this process, made when they are first needed and again after a fork, and where they lead."""
        with self._lock:
            address = self._target()
            self._check_process()
            if self._channels is None:
                self._channels = blocking_channels(address)
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
def _failures(address: str, timeout: float | None) -> Iterator[None]:
    """Raises what a failed call means."""
    try:
        yield
    except grpc.RpcError as failure:
        raise shared.error_of(failure, address, timeout) from failure
    except ValueError as failure:
        if not {"closed", "channel"} <= set(re.findall(r"\w+", str(failure).lower())):
            raise  # the caller's own
        raise RuntimeError("the client is closed") from failure
