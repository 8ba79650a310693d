"""Requests that all wait while the only thread of a server is busy, and what they are."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import grpc
import numpy as np
from numpy.typing import NDArray
from tests.contract import SERVICE, convolution, request
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.v1 import convolution_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import RunningServer

Array = NDArray[Any]

FLAGS = ("--threads=1", "--backend=reference", "--queue-seconds=1000")
SHAPE, WEIGHT_SHAPE = (16, 32, 32), (16, 16, 3, 3)
"""Of one item, and of weights: more than what is computed on the event loop, and far less than what runs alone."""

PATIENCE = 60.0


def numbers(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    """Small integers, whose sums are exact."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def image(seed: int, items: int | None = 1, dtype: str = "float32") -> Array:
    """That of one request, without a batch dimension for None."""
    return numbers(*(() if items is None else (items,)), *SHAPE, seed=seed, dtype=dtype)


WEIGHT, OTHER_WEIGHT = numbers(*WEIGHT_SHAPE, seed=1000), numbers(*WEIGHT_SHAPE, seed=1001)


def convolved(x: Array, w: Array = WEIGHT) -> Array:
    """By its definition."""
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], (-2, -1))
    sums = np.tensordot(windows, w, ((-5, -2, -1), (1, 2, 3)))
    output: Array = np.moveaxis(sums, -1, -3)
    return output


class Busy:
    """A server one of whose threads computes something endless until `let_go`: a minute of sums, row by row, so that it
    stops soon after its caller has hung up.
    """

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        until(lambda: self.in_flight == 0, "all earlier requests to be done")
        self._channel = grpc.insecure_channel(server.address)
        header = convolution((1, 1, 1000, 1000), (17, 1, 150, 150))
        header.execution.algorithm = convolution_pb2.ALGORITHM_DIRECT
        message = request(header, np.ones((17, 150, 150), np.float32), np.ones((1000, 1000), np.float32))
        call: Any = self._channel.unary_unary(f"/{SERVICE}/Convolve")
        somebody = (("convolver-client", "somebody-else"),)  # whose estimate is not before anybody with a deadline
        self._call = call.future(message, timeout=600, metadata=somebody)

    def __enter__(self) -> Self:
        until(lambda: self.in_flight == 1, "the endless one to run")
        self.launched = launched(self._server)
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._channel.close()

    @property
    def in_flight(self) -> int:
        """Itself, and those that wait or run."""
        return int(metric(self._server, "convolver_in_flight"))

    def until_waiting(self, count: int) -> None:
        """Until so many requests wait beside it, of which nothing runs meanwhile."""
        until(lambda: self.in_flight == 1 + count, f"{count} requests to wait")
        assert launched(self._server) == self.launched

    def let_go(self) -> None:
        """The thread is free from now on."""
        assert not self._call.done() or self._call.cancelled(), "it should have been endless"
        self._call.cancel()


def launched(server: RunningServer) -> tuple[int, int]:
    """Launches, and the requests of them."""
    return int(metric(server, "convolver_batch_size_count")), int(metric(server, "convolver_batch_size_sum"))


class Crowd(NamedTuple):
    """What the calls gave or raised, and how many launches there were of how many requests."""

    outcomes: list[Any]
    launches: int
    requests: int

    @property
    def sizes(self) -> list[int]:
        """How many ran together with each call, itself included."""
        return [outcome.report.batch_size for outcome in self.outcomes]

    @property
    def reasons(self) -> list[str]:
        """Why each ran alone."""
        return [outcome.report.unbatched for outcome in self.outcomes]


def crowd(
    server: RunningServer,
    calls: Sequence[Callable[[], Any]],
    meanwhile: Callable[[Busy], object] = lambda _: None,
    waiting: int = 0,
) -> Crowd:
    """Makes all calls, of each of which one request waits, or so many of all; `meanwhile` is called then, and after it
    they may run.
    """
    with ThreadPoolExecutor(len(calls)) as threads, Busy(server) as busy:
        futures = [threads.submit(call) for call in calls]
        busy.until_waiting(waiting or len(calls))
        meanwhile(busy)
        busy.let_go()
        outcomes = [future.exception(PATIENCE) or future.result() for future in futures]
        launches, requests = (now - before for now, before in zip(launched(server), busy.launched, strict=True))
    return Crowd(outcomes, launches, requests)


def assert_right(found: Crowd, inputs: Sequence[Array], w: Array = WEIGHT) -> None:
    """Each has its own answer."""
    for outcome, x in zip(found.outcomes, inputs, strict=True):
        np.testing.assert_array_equal(outcome.output, convolved(x, w))


def ran_as_one(found: Crowd) -> bool:
    """Whether all ran together, in one launch, and say so."""
    count = len(found.outcomes)
    expected = (1, count, [count] * count, [""] * count)
    return (found.launches, found.requests, found.sizes, found.reasons) == expected
