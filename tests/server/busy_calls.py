"""A server whose only thread is busy, calls of callers with names, and what refusals say about coming again."""

from __future__ import annotations

import urllib.request
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from tests.contract import SERVICE, convolution, request
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.v1 import convolution_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

    import grpc
    from tests.conftest import RunningServer

    from convolver.v1.convolution_pb2 import Convolution

CALLER = "convolver-client"
BEGUN, BACKLOG = "convolver_queue_seconds_count", "convolver_backlog_seconds"
MEMORY, IN_FLIGHT = "convolver_memory_bytes", "convolver_in_flight"
SAVED_IN_QUEUE, SAVED_RUNNING = (f'convolver_saved_seconds_total{{where="{where}"}}' for where in ("queue", "running"))

LONG_IMAGE, LONG_KERNEL = (16, 64, 64, 64), (64, 64, 31, 31)
"""Some 10 s of direct sums in many small blocks, between which they can be stopped."""


def long_header(items: int = LONG_IMAGE[0]) -> Convolution:
    """Or part of it."""
    header = convolution((items, *LONG_IMAGE[1:]), LONG_KERNEL)
    header.execution.algorithm = convolution_pb2.ALGORITHM_DIRECT
    header.layers[0].definition.parameters.padding_word = convolution_pb2.PADDING_WORD_SAME
    return header


@cache
def long(
    items: int = LONG_IMAGE[0], priority: convolution_pb2.Priority.ValueType = convolution_pb2.PRIORITY_INTERACTIVE
) -> bytes:
    """A request that takes them."""
    header = long_header(items)
    header.execution.priority = priority
    return request(header, np.ones(LONG_KERNEL, np.float32), np.ones((items, *LONG_IMAGE[1:]), np.float32))


@cache
def short() -> bytes:
    """A request of milliseconds, but too many bytes for the event loop; its kernel is all ones, as its input."""
    shape = (1, 1, 600, 600)
    return request(convolution(shape), np.ones((1, 1, 2, 2), np.float32), np.ones(shape, np.float32))


def begin(channel: grpc.Channel, message: bytes, caller: str | None, timeout: float = 120) -> grpc.Future[bytes]:
    """The Convolve call of that caller, which goes on; without a name it is the channel's peer who calls."""
    metadata = ((CALLER, caller),) if caller else ()
    call: Any = channel.unary_unary(f"/{SERVICE}/Convolve")
    return cast("grpc.Future[bytes]", call.future(message, timeout=timeout, metadata=metadata))


def is_at_rest(running: RunningServer) -> bool:
    """Whether it holds nothing, owes nothing and does nothing."""
    return all(metric(running, each) == 0 for each in (MEMORY, IN_FLIGHT, BACKLOG))


@contextmanager
def busy(
    running: RunningServer, channel: grpc.Channel, caller: str | None = "heavy", message: bytes = b""
) -> Iterator[grpc.Future[bytes]]:
    """While this lasts the server's only thread computes for that caller, unless it is cancelled."""
    begun = metric(running, BEGUN)
    call = begin(channel, message or long(), caller)
    try:
        until(lambda: metric(running, BEGUN) > begun or call.done(), "it to begin")
        assert not call.done(), call
        yield call
    finally:
        call.cancel()
        until(lambda: is_at_rest(running), "nothing to be left")


def macs(running: RunningServer) -> float:
    """Of all that the server has computed."""
    with urllib.request.urlopen(f"{running.http}/metrics", timeout=30) as answer:  # noqa: S310  # our own http://
        lines = answer.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("convolver_macs_total{"))


class Refusal(NamedTuple):
    """The reason of a status, its text, and the seconds after which to come again, if it says so."""

    reason: str
    text: str
    seconds: float | None


def refusal(status: status_pb2.Status) -> Refusal:
    info, retry, seconds = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    for detail in status.details:
        detail.Unpack(info)
        if detail.Unpack(retry):
            seconds = retry.retry_delay.ToTimedelta().total_seconds()
    return Refusal(info.reason, status.message, seconds)


def refusal_of(failure: BaseException | None) -> Refusal:
    """That of a call that failed."""
    status = rpc_status.from_call(cast("grpc.Call", failure))
    assert status, failure
    return refusal(status)
