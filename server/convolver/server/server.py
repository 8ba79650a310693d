"""The life of a server: start, serve, stop."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from convolver.server import metrics
from convolver.server._errors_interceptor import ErrorsInterceptor
from convolver.server._metrics_interceptor import MetricsInterceptor
from convolver.server.address import host_and_port
from convolver.server.calls import Calls
from convolver.server.engine import Engine
from convolver.server.http import HttpServer
from convolver.server.layer_service import LayerService
from convolver.server.layers import LayerStore
from convolver.server.regions import Registry
from convolver.server.requests import Requests
from convolver.server.scheduler import Scheduler
from convolver.server.service import ConvolutionService
from convolver.server.settings import Settings
from convolver.server.shared_memory_service import DESCRIPTOR as SHARED_MEMORY
from convolver.server.shared_memory_service import SharedMemoryService
from convolver.v1 import convolution_service_pb2, layer_service_pb2, shared_memory_service_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_Status = health_pb2.HealthCheckResponse

GOODBYE_SECONDS = 0.25
"""For idle connections to end by agreement, once no call is open."""

_OPTIONS = {
    "grpc.so_reuseport": 0,  # a second server on the same port is an error, not a lottery
    "grpc.http2.min_ping_interval_without_data_ms": 5_000,  # by default 300 s, which ends those that ping every 30
    "grpc.keepalive_permit_without_calls": 1,
}

_SERVICES = (
    (convolution_service_pb2.DESCRIPTOR, "ConvolutionService"),
    (layer_service_pb2.DESCRIPTOR, "LayerService"),
    (shared_memory_service_pb2.DESCRIPTOR, "SharedMemoryService"),
)
"""The whole contract: calls of what is not served yet are counted under their own names."""

_SERVED = ("convolver.v1.ConvolutionService", "convolver.v1.LayerService")
"""Whose readiness is told, and which reflection lists, besides what a setting adds."""


class Server:
    """gRPC with health and reflection, and the HTTP port, on one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.addresses: list[str] = []
        self._layers = LayerStore(int(settings.layer_budget))
        self._engine = Engine.of(settings, self._layers)
        self._scheduler = Scheduler(settings.threads, settings.memory_budget)
        self._calls = Calls()
        self._regions = Registry(int(settings.shared_memory_budget)) if settings.shared_memory else None
        self._health = health.aio.HealthServicer()
        self._stopping = asyncio.Event()
        self._ready = False
        self._locks: list[IO[str]] = []
        self._grpc = self._built()
        host, port = host_and_port(settings.http_listen) if settings.http_listen else ("", 0)
        self._http = HttpServer(host, port, lambda: self._ready) if settings.http_listen else None

    async def run(self) -> None:
        """Serves until it is told to stop, then drains."""
        await self.start()
        await self._stopping.wait()
        await self.stop()

    async def start(self) -> None:
        """Listens. Raises OSError where an address cannot be had."""
        metrics.expect(capability.name for capability in self._engine.capabilities)
        self.addresses = [self._bound(address) for address in self.settings.listen]
        if self._http:
            with _naming(f"http://{self.settings.http_listen}"):
                self._http.start()
        await self._grpc.start()
        for name in ("", *_SERVED):  # liveness, and readiness
            await self._health.set(name, _Status.SERVING)
        self._ready = True
        self._watch_signals()
        self._announce()

    async def stop(self) -> None:
        """Readiness first, then the drain delay, then no new calls; returns when the calls in flight have ended, or
        after the grace.
        """
        self._ready = False
        for name in _SERVED:
            await self._health.set(name, _Status.NOT_SERVING)
        await asyncio.sleep(self.settings.drain_delay)
        self._calls.drain()
        stopping = asyncio.create_task(self._grpc.stop(self.settings.grace))
        with suppress(TimeoutError):
            await asyncio.wait_for(self._calls.ended(), self.settings.grace)
        await asyncio.wait([stopping], timeout=GOODBYE_SECONDS)  # for callers who take leave; cut off, they log it
        await self._grpc.stop(None)  # what is open now are health's watchers, which would keep it for all of the grace
        await stopping
        if self._http:
            self._http.stop()
        self._scheduler.close()
        self._unlock()
        logger.info("stopped")

    def request_stop(self) -> None:
        """Asks `run` to end."""
        self._stopping.set()

    @property
    def busy(self) -> bool:
        """Whether a convolution still runs: after `run` only one that outlasted the grace."""
        return self._scheduler.busy

    def _built(self) -> grpc.aio.Server:
        options = {
            **_OPTIONS,
            "grpc.max_receive_message_length": int(self.settings.max_message),
            "grpc.max_send_message_length": int(self.settings.max_message),
        }
        metrics_interceptor = MetricsInterceptor(
            [
                *(file.services_by_name[name] for file, name in _SERVICES),
                health_pb2.DESCRIPTOR.services_by_name["Health"],
                reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
            ]
        )
        interceptors = [metrics_interceptor, ErrorsInterceptor()]
        server = grpc.aio.server(interceptors=interceptors, options=list(options.items()))
        requests = Requests(self._engine, self._scheduler, int(self.settings.max_message), self._regions)
        service = ConvolutionService(self._engine, requests, self._calls, self.settings)
        layers = LayerService(self._layers, self._calls, self.settings.idle_timeout)
        server.add_generic_rpc_handlers((service.handler(), layers.handler()))
        if self._regions:
            server.add_generic_rpc_handlers((SharedMemoryService(self._regions, self._calls).handler(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        sharing = (SHARED_MEMORY.full_name,) if self._regions else ()
        names = (*_SERVED, *sharing, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _bound(self, address: str) -> str:
        """The address with the port that a 0 became."""
        unix = address.startswith("unix:")
        with _naming(address):
            if unix:
                self._lock(Path(address.removeprefix("unix:")))
            else:
                _check_free(*host_and_port(address))
            port = self._grpc.add_insecure_port(address)
        return address if unix else f"{address.rpartition(':')[0]}:{port}"

    def _lock(self, path: Path) -> None:
        """Forbids a second server on the path: gRPC would take the socket over without a word."""
        if path.exists() and not path.is_socket():
            raise FileExistsError(errno.EEXIST, "the file exists and is no socket")
        lock = Path(f"{path}.lock").open("a")  # noqa: SIM115  # held until the server stops
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise OSError(errno.EADDRINUSE, "another server does") from None
        self._locks.append(lock)

    def _unlock(self) -> None:
        for lock in self._locks:
            Path(lock.name).unlink(missing_ok=True)
            lock.close()

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        if self.settings.exit_on_eof:
            self._watch_stdin()

    def _watch_stdin(self) -> None:
        """A pipe or a terminal is waited for; a file, /dev/null and a closed standard input have ended already."""
        if sys.stdin is None:
            self.request_stop()
            return
        try:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._read_until_eof)
        except PermissionError:  # epoll takes no files
            self.request_stop()

    def _read_until_eof(self) -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self.request_stop()

    def _announce(self) -> None:
        for given, address in zip(self.settings.listen, self.addresses, strict=True):
            if given in self.settings.exposed:
                logger.warning(
                    "%s is open to other machines, with neither TLS nor tokens: who reaches it may compute",
                    address,
                )
        http = f"; http://{self._http.address}" if self._http else ""
        sys.stderr.write(f"convolver-server listening on {', '.join(self.addresses)}{http}\n")
        sys.stderr.flush()


@contextmanager
def _naming(address: str) -> Iterator[None]:
    """Makes an OSError that names the address of whatever forbids to listen there."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {address}: {reason}") from error


def _check_free(host: str, port: int) -> None:
    """Raises OSError with the system's reason where no socket can be bound: gRPC logs it, and raises another."""
    refusal = OSError(errno.EADDRNOTAVAIL, "no address")
    for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(where)
            except OSError as error:
                refusal = error
            else:
                return
    raise refusal
