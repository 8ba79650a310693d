from __future__ import annotations

import http.client
import socket
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from convolver.server.http import HttpServer
from convolver.server.metrics import REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterator


class Readiness:
    """Whether the server under test is ready."""

    ready = True

    def __call__(self) -> bool:
        return self.ready


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def server(readiness: Readiness) -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1", 0, readiness, REGISTRY)
    server.start()
    yield server
    server.stop()


def ask(server: HttpServer, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, str]:
    """One request; the answer's status, headers and text."""
    connection = http.client.HTTPConnection(server.address, timeout=30)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def connect(server: HttpServer) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def has_ipv6_loopback() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def test_metrics_are_served_as_text(server: HttpServer) -> None:
    status, headers, text = ask(server, "/metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "convolver_in_flight" in {family.name for family in parse_text(text)}


def test_metrics_are_served_as_openmetrics_to_whoever_asks(server: HttpServer) -> None:
    status, headers, text = ask(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(text)  # type: ignore[no-untyped-call]  # as prometheus_client ships it
    assert "convolver_in_flight" in {family.name for family in families}


def test_a_version_that_is_no_number_is_no_error(server: HttpServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert ask(server, "/metrics", Accept="application/openmetrics-text; version=latest")[0] == 200
    assert capfd.readouterr().err == ""


def test_healthz_is_fine_while_the_process_lives(server: HttpServer, readiness: Readiness) -> None:
    readiness.ready = False
    assert ask(server, "/healthz")[0] == 200


def test_readyz_follows_readiness(server: HttpServer, readiness: Readiness) -> None:
    assert ask(server, "/readyz")[0] == 200
    readiness.ready = False
    assert ask(server, "/readyz")[0] == 503


@pytest.mark.parametrize("path", ["/", "/metrics/", "/Metrics", "/../metrics", "/readyz%00"])
def test_an_unknown_path_is_not_found(path: str, server: HttpServer) -> None:
    assert ask(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])
def test_other_methods_are_refused(method: str, server: HttpServer) -> None:
    status, headers, _ = ask(server, "/metrics", method)
    assert (status, headers["Allow"]) == (405, "GET")


def test_two_servers_on_port_zero_have_different_addresses(server: HttpServer) -> None:
    other = HttpServer("127.0.0.1", 0, Readiness(), REGISTRY)
    other.start()
    assert other.address != server.address
    other.stop()


def test_an_ipv6_address_is_written_in_brackets() -> None:
    if not has_ipv6_loopback():
        pytest.skip("this machine has no IPv6")
    server = HttpServer("::1", 0, Readiness(), REGISTRY)
    server.start()
    assert server.address.startswith("[::1]:")
    assert ask(server, "/healthz")[0] == 200
    server.stop()


def test_a_taken_port_is_an_error(server: HttpServer) -> None:
    host, _, port = server.address.rpartition(":")
    with pytest.raises(OSError, match="in use"):
        HttpServer(host, int(port), Readiness(), REGISTRY).start()


def test_a_stopped_server_refuses_connections_and_can_be_stopped_again(server: HttpServer) -> None:
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_stopping_ends_the_connections_that_are_open(server: HttpServer) -> None:
    with connect(server) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert ask(server, "/healthz")[0] == 200  # connections are taken in turn, so the slow one was taken too
        server.stop()
        assert slow.recv(1) == b""


def test_a_request_that_never_ends_is_hung_up_on(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convolver.server.http.PATIENCE", 0.0)
    with connect(server) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\n")
        assert slow.recv(1) == b""


def test_connections_beyond_the_most_are_closed_until_others_end(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convolver.server.http.MOST_CONNECTIONS", 1)
    with connect(server) as first, connect(server) as second:
        assert second.recv(1) == b""
        first.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert b"".join(iter(lambda: first.recv(4096), b"")).startswith(b"HTTP/1.0 200")
    assert ask(server, "/healthz")[0] == 200


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff\r\n\r\n", b"GET\r\n\r\n", b"G" * 70_000, b"GET / HTTP/9.9\r\n\r\n", b""]
)
def test_garbage_leaves_the_server_serving_and_silent(
    garbage: bytes, server: HttpServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with connect(server) as connection:
        connection.sendall(garbage)
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
        )  # reset at close
    assert ask(server, "/healthz")[0] == 200
    assert capfd.readouterr().err == ""
