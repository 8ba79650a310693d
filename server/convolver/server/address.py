"""Addresses to listen on, as gRPC writes them: `host:port`, `[ipv6]:port` and `unix:/path`."""

from __future__ import annotations

import ipaddress
import os
import re

UNIX_PATH_BYTES = 107
"""The longest path of a socket: Linux's sockaddr_un.sun_path, less its terminating zero."""


def checked(address: str) -> str:
    """The address, with gRPC's other spelling `unix:///path` as `unix:/path`.

    Raises ValueError naming what is wrong with it.
    """
    if not address.startswith("unix:"):
        host_and_port(address)
        return address
    path = re.sub(r"^///", "/", address.removeprefix("unix:"))
    if not path or path.startswith("//"):
        raise ValueError("a unix address is unix:/path")
    if len(os.fsencode(path)) > UNIX_PATH_BYTES:
        raise ValueError(f"a socket's path has at most {UNIX_PATH_BYTES} bytes, this one has {len(os.fsencode(path))}")
    return f"unix:{path}"


def host_and_port(address: str) -> tuple[str, int]:
    """The two parts of `host:port` or `[ipv6]:port`, without brackets.

    Raises ValueError for anything else.
    """
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+(?:%\w+)?)\]|([\w.-]+)):(\d{1,5})", address, re.ASCII)
    if match is None:
        raise ValueError("an address is host:port, [ipv6]:port or unix:/path")
    ipv6, name, port = match.groups()
    if int(port) > 65535:
        raise ValueError(f"port {port} is larger than 65535")
    if ipv6:
        ipaddress.IPv6Address(ipv6)
    elif re.fullmatch(r"[\d.]+", name):
        ipaddress.IPv4Address(name)
    return ipv6 or name, int(port)


def is_local(address: str) -> bool:
    """Whether this machine alone can reach the address: a unix socket or the loopback interface."""
    if address.startswith("unix:"):
        return True
    host, _ = host_and_port(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
