"""Addresses to listen on: whether they are free, how workers share them, and how they are announced."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from convolver.server.address import host_and_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from convolver.server.settings import Settings

logger = logging.getLogger(__name__)


@contextmanager
def naming(address: str) -> Iterator[None]:
    """Makes an OSError that names the address of whatever forbids to listen there."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot listen on {address}: {reason}") from error


def check_free(host: str, port: int) -> None:
    """Raises OSError with the system's reason where no socket can be bound: gRPC logs it, and raises another."""
    _bound(host, port, socket.SO_REUSEADDR).close()


def reserve(address: str) -> tuple[str, socket.socket]:
    """Keeps a `host:port` for workers, which listen there with SO_REUSEPORT, and from others: the address with the port
    that a 0 became, and a socket that is to stay open. It does not listen, so it gets no connections.

    Raises OSError where somebody else has the port.
    """
    host, port = host_and_port(address)
    check_free(host, port)
    holder = _bound(host, port, socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    # An old connection's end does not prevent binding; from now on it prevents others, as a listening socket would.
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    return f"{address.rpartition(':')[0]}:{holder.getsockname()[1]}", holder


def announce(settings: Settings, addresses: Sequence[str], http: str) -> None:
    """Says on stderr where the server listens: `addresses` are those of `settings.listen`, `http` may be empty."""
    for given, address in zip(settings.listen, addresses, strict=True):
        if given in settings.exposed:
            logger.warning(
                "%s is open to other machines, with neither TLS nor tokens: who reaches it may compute", address
            )
    also = f"; http://{http}" if http else ""
    sys.stderr.write(f"convolver-server listening on {', '.join(addresses)}{also}\n")
    sys.stderr.flush()


def _bound(host: str, port: int, *options: int) -> socket.socket:
    """A socket at the first of the host's addresses that takes one."""
    refusal = OSError(errno.EADDRNOTAVAIL, "no address")
    for family, _, _, _, where in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            for option in options:
                bound.setsockopt(socket.SOL_SOCKET, option, 1)
            bound.bind(where)
        except OSError as error:
            bound.close()
            refusal = error
        else:
            return bound
    raise refusal
