"""The life of a server: start, serve, stop."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from convolver.server import metrics
from convolver.server._errors_interceptor import ErrorsInterceptor
from convolver.server._metrics_interceptor import MetricsInterceptor
from convolver.server.address import host_and_port
from convolver.server.answering import Desk
from convolver.server.calls import Calls
from convolver.server.engine import Engine
from convolver.server.http import HttpServer
from convolver.server.layer_service import LayerService
from convolver.server.layers import LayerStore
from convolver.server.listening import check_free, naming
from convolver.server.regions import Registry
from convolver.server.requests import Requests
from convolver.server.scheduler import Scheduler
from convolver.server.service import ConvolutionService
from convolver.server.settings import Settings
from convolver.server.shared_memory_service import DESCRIPTOR as SHARED_MEMORY
from convolver.server.shared_memory_service import SharedMemoryService
from convolver.server.stop_requests import watch_signals, watch_stdin
from convolver.v1 import convolution_service_pb2, layer_service_pb2, shared_memory_service_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger(__name__)

_Status = health_pb2.HealthCheckResponse

GOODBYE_SECONDS = 0.25
"""For idle connections to end by agreement, once no call is open."""

BEYOND_SECONDS = 3600.0
"""After the grace, until gRPC would cut calls off by itself. We do that before: a stop of gRPC whose time ends just
when another has ended the server crashes the process.
"""

LAST_SECONDS = 1.0
"""For the tasks of calls that were cut off to end, which they do a little after gRPC. Left to asyncio.run they would be
logged as failures.
"""

_OPTIONS = {
    "grpc.http.overload_protection": 0,  # it counts calls that are over too, and refuses what callers may send
    "grpc.http2.min_ping_interval_without_data_ms": 5_000,  # by default 300 s, which ends those that ping every 30
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.keepalive_time_ms": 60_000,  # a caller whose machine is gone says no goodbye
    "grpc.keepalive_timeout_ms": 20_000,
    "grpc.server.max_pending_requests_hard_limit": 1000,  # by default gRPC keeps 3000 that the loop has not looked at
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
        self._scheduler = _scheduler(settings)
        self._calls = Calls()
        self._regions = Registry(int(settings.shared_memory_budget)) if settings.shared_memory else None
        self._health = health.aio.HealthServicer()
        self._stopping = asyncio.Event()
        self._ready = False
        self._locks: list[IO[str]] = []
        self._grpc = self._built()
        host, port = host_and_port(settings.http_listen) if settings.http_listen else ("", 0)
        self._http = HttpServer(host, port, lambda: self._ready, metrics.REGISTRY) if settings.http_listen else None

    async def run(self, listening: Callable[[Server], None]) -> None:
        """Serves until it is told to stop, then drains. Calls `listening` once it can be called."""
        watch_signals(self.request_stop, os._exit)
        if self.settings.exit_on_eof:
            watch_stdin(self.request_stop)
        await self.start()
        listening(self)
        await self._stopping.wait()
        await self.stop()

    async def start(self) -> None:
        """Listens. Raises OSError where an address cannot be had."""
        metrics.expect(capability.name for capability in self._engine.capabilities)
        self.addresses = [self._bound(address) for address in self.settings.listen]
        if self._http:
            with naming(f"http://{self.settings.http_listen}"):
                self._http.start()
        await self._grpc.start()
        for name in ("", *_SERVED):  # liveness, and readiness
            await self._health.set(name, _Status.SERVING)
        self._ready = True

    async def stop(self) -> None:
        """Readiness first, then the drain delay, then no new calls; returns when the calls in flight have ended, or
        after the grace.
        """
        self._ready = False
        for name in _SERVED:
            await self._health.set(name, _Status.NOT_SERVING)
        delay, grace = self.settings.drain_delay, self.settings.grace
        logger.info("draining: calls are served for %g s more, and have %g s to end", delay, grace)
        await asyncio.sleep(delay)
        self._calls.drain()
        stopping = asyncio.create_task(self._grpc.stop(grace + BEYOND_SECONDS))
        try:
            await asyncio.wait_for(self._calls.ended(), grace)
            await asyncio.wait([stopping], timeout=GOODBYE_SECONDS)  # for callers who take leave; cut off, they log it
        except TimeoutError:
            logger.warning("%d calls did not end within the grace and are cut off", self._calls.open)
        await self._grpc.stop(None)  # what is open now are health's watchers, which would keep it for all of the grace
        await stopping
        await _others_ended()
        if self._http:
            self._http.stop()
        self._scheduler.close()
        self._unlock()
        logger.info("stopped")

    def request_stop(self) -> None:
        """Asks `run` to end."""
        self._stopping.set()

    @property
    def http_address(self) -> str:
        """Where HTTP is served, with the port that a 0 became; empty where it is not."""
        return self._http.address if self._http else ""

    @property
    def _shared_addresses(self) -> bool:
        """Whether other workers listen there too. Otherwise a second server on a port is an error, not a lottery."""
        return self.settings.workers > 1

    @property
    def busy(self) -> bool:
        """Whether a convolution still runs: after `run` only one that outlasted the grace."""
        return self._scheduler.busy

    def _options(self) -> dict[str, int]:
        settings = self.settings
        options = {
            **_OPTIONS,
            "grpc.max_concurrent_streams": settings.max_concurrent_streams,
            "grpc.so_reuseport": int(self._shared_addresses),
            "grpc.max_receive_message_length": int(settings.max_message),
            "grpc.max_send_message_length": int(settings.max_message),
        }
        if settings.max_connection_age:
            options["grpc.max_connection_age_ms"] = max(1, round(settings.max_connection_age * 1000))
            options["grpc.max_connection_age_grace_ms"] = round(settings.max_connection_age_grace * 1000)
        return options

    def _built(self) -> grpc.aio.Server:
        metrics_interceptor = MetricsInterceptor(
            [
                *(file.services_by_name[name] for file, name in _SERVICES),
                health_pb2.DESCRIPTOR.services_by_name["Health"],
                reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
            ]
        )
        interceptors = [metrics_interceptor, ErrorsInterceptor()]
        server = grpc.aio.server(interceptors=interceptors, options=list(self._options().items()))
        desk = Desk(self._engine, int(self.settings.max_message), self.settings.max_batch)
        requests = Requests(desk, self._scheduler, self._regions)
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
        with naming(address):
            if unix:
                self._lock(Path(address.removeprefix("unix:")))
            elif not self._shared_addresses:
                check_free(*host_and_port(address))
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


async def _others_ended() -> None:
    """Returns once no other task is left on this loop, which is the server's own, or after LAST_SECONDS."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LAST_SECONDS):
            while others := asyncio.all_tasks() - {asyncio.current_task()}:
                await asyncio.wait(others)


def _scheduler(settings: Settings) -> Scheduler:
    return Scheduler(
        settings.threads,
        settings.memory_budget,
        queue_seconds=settings.queue_seconds,
        max_batch=settings.max_batch,
        max_delay=settings.max_delay,
    )
