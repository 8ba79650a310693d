from __future__ import annotations

import pytest

from convolver.server.address import checked, host_and_port, is_local


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:50051", ("127.0.0.1", 50051)),
        ("[::1]:0", ("::1", 0)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
        ("[::ffff:10.0.0.1]:1", ("::ffff:10.0.0.1", 1)),
        ("my_server.example-1.org:80", ("my_server.example-1.org", 80)),
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert host_and_port(address) == parts
    assert checked(address) == address


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("", "host:port"),
        ("127.0.0.1", "host:port"),
        (":50051", "host:port"),
        ("::1:50051", "host:port"),
        ("[::1]", "host:port"),
        ("127.0.0.1:http", "host:port"),
        ("127.0.0.1:-1", "host:port"),
        ("127.0.0.1:\uff11", "host:port"),
        ("127.0.0.1:1\n", "host:port"),
        ("http://localhost:1", "host:port"),
        ("127.0.0.1:65536", "port 65536 is larger than 65535"),
        ("127.0.0.256:1", "256"),
        ("10.1:1", "Expected 4 octets"),
        ("[::1::]:1", "::"),
        ("unix:", "unix:/path"),
        ("unix://host/path", "unix:/path"),
        ("unix:/" + "x" * 107, "at most 107 bytes, this one has 108"),
        ("unix:/" + "ä" * 54, "at most 107 bytes, this one has 109"),
    ],
)
def test_what_is_no_address_is_refused_with_the_rule(address: str, rule: str) -> None:
    with pytest.raises(ValueError, match=rule.replace("[", r"\[")):
        checked(address)


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:x.sock", "unix:x.sock"),
        ("unix:///run/x.sock", "unix:/run/x.sock"),
        ("unix:/" + "x" * 106, "unix:/" + "x" * 106),
    ],
)
def test_a_unix_address_has_one_spelling(address: str, same: str) -> None:
    assert checked(address) == same


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1", "unix:/run/x"])
def test_loopback_and_unix_sockets_are_local(address: str) -> None:
    assert is_local(address)


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "server:1", "localhost.example.org:1"])
def test_everything_else_may_be_reached_by_others(address: str) -> None:
    assert not is_local(address)
