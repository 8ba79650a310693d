"""Metrics and health over HTTP, on a port and in threads of their own, out of the event loop's way."""

from __future__ import annotations

import logging
import socket
import time
from contextlib import suppress
from socketserver import TCPServer, ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from prometheus_client import CollectorRegistry

logger = logging.getLogger(__name__)

MOST_CONNECTIONS = 32
PATIENCE = 10.0
"""Seconds that one connection may last. A socket timeout alone would begin anew with every byte of a slow client."""

_POLL = 0.1  # seconds; stop() waits so long, and a connection may outlast PATIENCE by as much


class HttpServer:
    """Serves /metrics, /healthz and /readyz. Each /readyz calls `ready`, each /metrics the registry's collectors, from
    other threads than the maker's.
    """

    def __init__(self, host: str, port: int, ready: Callable[[], bool], registry: CollectorRegistry) -> None:
        self._host, self._port, self._application = host, port, _application(ready, registry)
        self._server: _Server | None = None
        self.address = ""
        """`host:port` or `[ipv6]:port` with the port that a 0 became; empty before the start."""

    def start(self) -> None:
        """Bind, serve from a thread, and return.

        Raises OSError if the host is unknown or the port is taken.
        """
        self._server = _Server(self._host, self._port, self._application)
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"{host}:{self._server.server_port}"
        Thread(target=self._server.serve_forever, args=(_POLL,), name="http", daemon=True).start()

    def stop(self) -> None:
        """Close the port and every connection. Takes about a tenth of a second; the second time does nothing."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401  # http.server's signature
        logger.debug("%r", format % args)  # what a caller wrote may hold escapes


class _Server(ThreadingMixIn, WSGIServer):
    """One thread for each connection, of which there are few, and none for long."""

    daemon_threads = True

    def __init__(self, host: str, port: int, application: WSGIApplication) -> None:
        self._since: dict[socket.socket, float] = {}
        self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        super().__init__((str(address[0]), int(address[1])), _Handler)
        self.set_app(application)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks DNS for a name that nobody needs
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ANN401, ARG002  # socketserver's signature
        return len(self._since) < MOST_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  # socketserver's signature
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401  # socketserver's signature
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        self._hang_up(before=time.monotonic() - PATIENCE)

    def server_close(self) -> None:
        super().server_close()
        self._hang_up(before=time.monotonic())

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401, ARG002  # socketserver's signature
        logger.debug("lost %s", client_address, exc_info=True)  # noqa: LOG014  # called from an except block

    def _hang_up(self, before: float) -> None:
        for request in [request for request, since in list(self._since.items()) if since <= before]:
            with suppress(OSError):  # its own thread was quicker
                request.shutdown(socket.SHUT_RDWR)


def _application(ready: Callable[[], bool], registry: CollectorRegistry) -> WSGIApplication:
    expose = make_wsgi_app(registry)

    def metrics(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            return expose(environ, start_response)  # type: ignore[no-any-return]  # prometheus_client leaves it untyped
        except TypeError:  # prometheus_client compares the version in an Accept header with numbers, unchecked
            return expose({**environ, "HTTP_ACCEPT": ""}, start_response)  # type: ignore[no-any-return]  # as above

    def healthz(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return _text(start_response, "200 OK", "ok")

    def readyz(_: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        return _text(start_response, *(("200 OK", "ready") if ready() else ("503 Service Unavailable", "not ready")))

    routes: dict[str, WSGIApplication] = {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        route = routes.get(environ["PATH_INFO"])
        if route is None:
            return _text(start_response, "404 Not Found", f"not found; there are {', '.join(routes)}")
        if environ["REQUEST_METHOD"] != "GET":
            return _text(start_response, "405 Method Not Allowed", "use GET", ("Allow", "GET"))
        return route(environ, start_response)

    return application


def _text(start_response: StartResponse, status: str, text: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain; charset=utf-8"), *headers])
    return [f"{text}\n".encode()]
