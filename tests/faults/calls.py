"""The kinds of calls, each with the answer that it has to give; and a process that makes them: python -m
tests.faults.calls KIND ADDRESS.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from convolver.client import Client
from convolver.core.errors import ConvolverError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

PATIENCE = 20.0
"""Seconds that a call may take which is to succeed, on a machine that does other things too."""

FRAMES = 24


def numbers(*shape: int) -> Array:
    """Small integers, whose sums are exact."""
    return np.random.default_rng(len(shape)).integers(-4, 5, shape).astype(np.float32)


WEIGHT = numbers(4, 3, 3, 3)
SMALL, LARGE = (1, 3, 120, 120), (2, 3, 512, 512)
"""Below what is worth sharing, and 6 MiB."""


@cache
def convolved(*shape: int) -> Array:
    """`numbers` of this shape with WEIGHT, by its definition."""
    windows = np.lib.stride_tricks.sliding_window_view(numbers(*shape), (3, 3), (2, 3))
    return np.tensordot(windows, WEIGHT, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)


def _convolve(shape: tuple[int, ...]) -> Callable[[Client, float], Array]:
    def call(client: Client, timeout: float) -> Array:
        output: Array = client.convolve(numbers(*shape), WEIGHT, timeout=timeout)
        return output

    return call


def _map(client: Client, timeout: float) -> Array:
    layer = client.layer(WEIGHT, timeout=timeout)
    return np.concatenate(list(layer.map([numbers(*SMALL)] * FRAMES, in_flight=8)))


def _share(client: Client, timeout: float) -> Array:
    given = client.empty(LARGE)
    given[...] = numbers(*LARGE)
    output: Array = client.convolve(given, WEIGHT, timeout=timeout)
    return output


class Call(NamedTuple):
    """A kind of call: what makes it within so many seconds, the shape of one input and how many there are."""

    name: str
    make: Callable[[Client, float], Array]
    shape: tuple[int, ...]
    inputs: int = 1

    @property
    def bytes(self) -> int:
        """About as many as it sends, and gets."""
        return int(np.prod(self.shape)) * 4 * self.inputs

    def check(self, client: Client) -> None:
        """Makes the call and checks the answer."""
        np.testing.assert_array_equal(self.make(client, PATIENCE), self.expected)

    @property
    def expected(self) -> Array:
        """The right answer."""
        return np.concatenate([convolved(*self.shape)] * self.inputs)


UNARY, CHUNKED = Call("unary", _convolve(SMALL), SMALL), Call("chunked", _convolve(LARGE), LARGE)
STREAM = Call("stream", _map, SMALL, FRAMES)
SHARED = Call("shared memory", _share, LARGE)
CALLS = (UNARY, STREAM, CHUNKED, SHARED)


def main(name: str, address: str) -> None:
    """Says that it begins; calls again and again, whatever comes of it, until its standard input ends; then the last
    call has to succeed.
    """
    [call] = [call for call in CALLS if call.name == name]
    ended = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(ended,), daemon=True).start()
    with Client(address, timeout=PATIENCE) as client:
        call.check(client)
        sys.stdout.write("calling\n")
        sys.stdout.flush()
        while not ended.is_set():
            with suppress(ConvolverError):
                call.make(client, PATIENCE)
        call.check(client)


def _wait_for_the_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


if __name__ == "__main__":
    main(*sys.argv[1:])
