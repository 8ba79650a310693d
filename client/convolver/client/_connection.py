"""How a client of either colour connects: addresses, timeouts, the options of channels, and what a fork leaves."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakSet

import grpc

from convolver.client._channels import AsynchronousChannels, BlockingChannels, Channels
from convolver.client._hedging import Latencies
from convolver.client._retries import Budget
from convolver.client.errors import ServiceUnavailable
from convolver.core.errors import InvalidConvolution
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import layer_service_pb2

if TYPE_CHECKING:
    from convolver.core.parameters import Parameters

LONGEST_TIMEOUT = 1e9
"""Seconds from which on a call waits for ever: gRPC's clock counts nanoseconds, and 2^63 of them end in 2262."""

ADDRESS_VARIABLE = "CONVOLVER_ADDRESS"

LARGEST_PORT = 65_535

_SERVICES = (
    pb.DESCRIPTOR.services_by_name["ConvolutionService"],
    layer_service_pb2.DESCRIPTOR.services_by_name["LayerService"],
)
PATHS = {method.name: f"/{service.full_name}/{method.name}" for service in _SERVICES for method in service.methods}
"""Of each method of the contract that a client calls."""

_CONFIGURATION = {
    "loadBalancingConfig": [{"round_robin": {}}],  # over all that an address stands for
    "methodConfig": [
        {
            "name": [{"service": service.full_name} for service in _SERVICES],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],  # of a server that ends, or is too busy
            },
        },
        {  # it would hold all that was sent
            "name": [
                {"service": _SERVICES[0].full_name, "method": method}
                for method in ("ConvolveChunked", "ConvolveStream")
            ]
        },
    ],
    # Of the process, for each target: retries stop at half of the tokens, each failed try takes one and each success
    # gives a tenth back. So 500 tries may fail at once, as where a server is killed with 64 calls in flight, three of
    # each; in the long run it is a retry for ten successes.
    "retryThrottling": {"maxTokens": 1000, "tokenRatio": 0.1},
}

Options = Sequence[tuple[str, Any]]

_OF_ONE: Options = (
    ("grpc.max_send_message_length", -1),  # the server's limit is the one that counts
    ("grpc.max_receive_message_length", -1),
    ("grpc.per_rpc_retry_buffer_size", 1 << 30),  # by default gRPC gives up retrying calls above 256 KiB
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),  # by default a server that comes back may be overlooked for 2 minutes
    ("grpc.enable_http_proxy", 0),  # tensors go to the address given and nowhere else
)

_OF_ALL: Options = (*_OF_ONE, ("grpc.service_config", json.dumps(_CONFIGURATION)))

_OF_EACH: Options = (
    *_OF_ONE,
    ("grpc.lb_policy_name", "round_robin"),  # which connects again by itself
    ("grpc.client_idle_timeout_ms", 2**31 - 1),  # never: the connection to each is what a call looks for
)

_OF_LEASE: Options = (*_OF_ONE, ("grpc.use_local_subchannel_pool", 1))
"""A lease is a call that stays open as long as its client. On the connection that all clients of a process share, many
of them would take the place of every other call."""

_NOWHERE = "unix:/nowhere"

_HOST_AND_PORT = re.compile(r"\s*(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})\s*")

_ASYNCHRONOUS: WeakSet[grpc.aio.Channel] = WeakSet()
"""The channels of the asynchronous clients of this process."""

_INHERITED: list[grpc.aio.Channel] = []
"""Those that were open when this process was forked: kept, since gRPC hangs in releasing the last of them."""

os.register_at_fork(after_in_child=lambda: _INHERITED.extend(_ASYNCHRONOUS))


class ClientBase:
    """What a client is before it connects: where its calls go, how long they may take, and whether it is closed."""

    def __init__(self, address: str | None = None, *, timeout: float | None = 60.0, hedge: bool = False) -> None:
        self._given, self._timeout = address_or_none(address), checked_timeout(timeout)
        self._closed = False
        self._budget = Budget()
        self._latencies = Latencies() if hedge else None

    def _seconds(self, parameters: Parameters) -> float | None:
        """What a call with these parameters may take."""
        timeout = checked_timeout(parameters.get("timeout", self._timeout))
        return None if timeout is not None and timeout > LONGEST_TIMEOUT else timeout

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the client is closed")

    def _check_still_open(self) -> None:
        """Raises ServiceUnavailable where the client was closed after a call had begun."""
        if self._closed:
            raise ServiceUnavailable(f"{self._given or 'the embedded server'}: the client was closed")


def place_of(address: str, channels: Channels[Any], channel: object) -> str:
    """The address of the server behind that channel; all of them where it is None, or leads to all."""
    parts = address.split(",")
    return next((part for part, each in zip(parts, channels.each, strict=False) if each is channel), address)


def left(seconds: float | None, begin: float) -> float | None:
    """What is left of so many seconds since `begin`, of time.monotonic; None is for ever."""
    return None if seconds is None else max(0.001, seconds - (time.monotonic() - begin))


def checked_timeout(timeout: float | None) -> float | None:
    """The timeout. Raises InvalidConvolution for what is no number of seconds above 0."""
    if timeout is not None and not (isinstance(timeout, Real) and timeout > 0):
        raise InvalidConvolution(f"timeout is {timeout!r}; it must be above 0 (seconds), or None for ever", "timeout")
    return timeout


class Targets(NamedTuple):
    """The servers that an address stands for, as gRPC has them: all in one target, and each where there are several."""

    together: str
    several: tuple[str, ...] = ()


def address_or_none(address: str | None) -> str | None:
    """The address to call: the one given, else CONVOLVER_ADDRESS, else None, which stands for an embedded server.

    Raises ValueError for an empty address, and for a list in which one is not host:port.
    """
    chosen = address if address is not None else os.environ.get(ADDRESS_VARIABLE) or None
    if chosen is None:
        return None
    parts = chosen.split(",")
    wrong = [part for part in parts if not part.strip() or (len(parts) > 1 and not _is_host_and_port(part))]
    if wrong:
        of_list = f" of {chosen!r}" if len(parts) > 1 else ""
        raise ValueError(
            f"the address is {wrong[0]!r}{of_list}; it must be host:port, several of them with commas between, "
            "unix:/path or dns:///host:port"
        )
    return chosen


def targets_of(address: str) -> Targets:
    """The address as gRPC has it. Of several, which are no target of its own, each is looked up now, once.

    Raises ServiceUnavailable where one of them has no address.
    """
    if "," not in address:
        return Targets(address)
    parts = [cast("re.Match[str]", _HOST_AND_PORT.fullmatch(part)) for part in address.split(",")]
    for family, scheme in ((socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")):
        with suppress(OSError, UnicodeError):  # of a name that no host can have
            found = [_looked_up(part["host"].strip("[]"), part["port"], family) for part in parts]
            return Targets(f"{scheme}:{','.join(found)}", tuple(f"{scheme}:{one}" for one in found))
    raise ServiceUnavailable(f"{address}: the names have no addresses of one kind, IPv4 or IPv6")


def _is_host_and_port(address: str) -> bool:
    found = _HOST_AND_PORT.fullmatch(address)
    return found is not None and int(found["port"]) <= LARGEST_PORT  # the system would take it modulo 65536


def _looked_up(host: str, port: str, family: socket.AddressFamily) -> str:
    *_, (literal, *_) = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0]
    return f"[{literal}]:{port}" if family == socket.AF_INET6 else f"{literal}:{port}"


def blocking_channels(address: str) -> BlockingChannels:
    """Channels to the address. Raises RuntimeError where gRPC does not work, and as `targets_of`."""
    _check_process()
    targets = targets_of(address)
    each = [grpc.insecure_channel(target, options=_OF_EACH) for target in targets.several]
    return BlockingChannels(grpc.insecure_channel(targets.together, options=_OF_ALL), each)


def asynchronous_channels(targets: Targets) -> AsynchronousChannels:
    """Channels to the targets, of the running event loop. Raises RuntimeError where gRPC does not work."""
    _check_process()
    each = [grpc.aio.insecure_channel(target, options=_OF_EACH) for target in targets.several]
    channels = AsynchronousChannels(grpc.aio.insecure_channel(targets.together, options=_OF_ALL), each)
    _ASYNCHRONOUS.update(channels.all)
    return channels


async def all_told() -> None:
    """Returns when gRPC has told the event loop of the end of each call that has ended, as far as it lets anybody know:
    what it tells a loop that has ended too, asyncio logs as an error, and its memory is lost.
    """
    # All ends go through one queue of the process, so that of a call that fails now comes last; the second is for what
    # another thread of gRPC's still ends (docs/decisions/0017).
    async with grpc.aio.insecure_channel(_NOWHERE) as last:
        _ASYNCHRONOUS.add(last)
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = last.unary_unary(PATHS["GetInfo"])
        for _ in range(2):
            with suppress(grpc.RpcError):
                await call(b"", timeout=0)


def blocking_channel_of_lease(address: str) -> grpc.Channel:
    """To one server, by a connection that nobody shares. Raises RuntimeError where gRPC does not work."""
    _check_process()
    return grpc.insecure_channel(address, options=_OF_LEASE)


def asynchronous_channel_of_lease(address: str) -> grpc.aio.Channel:
    """The same, of the running event loop."""
    _check_process()
    channel = grpc.aio.insecure_channel(address, options=_OF_LEASE)
    _ASYNCHRONOUS.add(channel)
    return channel


def _check_process() -> None:
    """Raises RuntimeError where gRPC does not work: its asyncio polls in a thread, which a fork interrupts. What the
    forked process then calls waits for ever or ends it, and with grpcio 1.76 its parent too.
    """
    if _INHERITED:
        raise RuntimeError(
            "this process was forked while the channel of an AsyncClient was alive, and gRPC does not work in it: "
            "close the client before the fork, or start processes by spawn"
        )
