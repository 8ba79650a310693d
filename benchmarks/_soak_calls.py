"""The callers of the soak: every kind of calls in a random order, with answers that are checked now and then."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from convolver.client import Client, Conv, DeadlineExceeded, Pool
from convolver.core.errors import Overloaded, UnknownLayer

if TYPE_CHECKING:
    import threading
    from collections import Counter

    from numpy.typing import NDArray

    Array = NDArray[Any]

LARGE_EVERY = 40
"""One in so many shapes is of megabytes, which travel in chunks or through shared memory."""

CHECKED = 0.1
"""The part of the forward calls whose answers are compared with NumPy's."""

TOO_SHORT = 0.0005
"""Seconds in which few calls are answered."""


def operands(index: int) -> tuple[Array, Array]:
    """Input and weight of a shape of their own: small integers, whose sums are exact in every type drawn."""
    rng = np.random.default_rng(index)
    rank, is_large = 1 + index % 3, index % LARGE_EVERY == 0
    longest = int((400_000 if is_large else 8_000) ** (1 / rank))
    channels, size = rng.integers(1, 5, 2), rng.integers(longest // 2 + 4, longest + 5, rank)
    dtype = ("float32", "float64", "float32", "int32")[index % 4]
    shapes = (rng.integers(1, 4), channels[0], *size), (channels[1], channels[0], *rng.integers(1, 4, rank))
    x, weight = (rng.integers(-4, 5, shape).astype(dtype) for shape in shapes)
    return x, weight


def convolved(x: Array, weight: Array) -> Array:
    """The convolution by its definition."""
    axes = tuple(range(2, x.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axes)
    sums = np.tensordot(windows, weight, ((1, *(x.ndim + axis - 2 for axis in axes)), (1, *axes)))
    return np.moveaxis(sums, -1, 1)


class Caller:
    """Calls one server through clients of its own, and counts: what is `done`, what has `failed` and should not have,
    and the shapes `seen`.
    """

    def __init__(
        self,
        address: str,
        seed: int,
        shapes: int,
        done: Counter[str],
        failed: Counter[str],
        seen: set[tuple[int, ...]],
    ) -> None:
        self._address, self._shapes = address, shapes
        self._done, self._failed, self._seen = done, failed, seen
        self._random = Random(seed)  # noqa: S311 - no cryptography
        kinds: list[tuple[Callable[[Client], object], int]] = [
            (self._forward, 40),
            (self._into_an_array, 5),
            (self._gradients, 8),
            (self._stack, 8),
            (self._layer, 8),
            (self._map, 6),
            (self._plan, 8),
            (self._info, 2),
            (self._bad_request, 8),
            (self._short_deadline, 4),
            (self._cancelled, 4),
        ]
        self._kinds, self._weights = zip(*kinds, strict=True)

    def call_until(self, ended: threading.Event) -> None:
        """Makes one call after the other."""
        with Client(self._address) as client:
            while not ended.is_set():
                [kind] = self._random.choices(self._kinds, self._weights)
                name = kind.__name__.strip("_").replace("_", " ")
                try:
                    kind(client)
                except Exception as error:  # noqa: BLE001 - it is counted, and makes the soak fail
                    self._failed[f"{name}: {type(error).__name__}: {error}"[:200]] += 1
                else:
                    self._done[name] += 1

    def _drawn(self) -> tuple[Array, Array]:
        x, weight = operands(self._random.randrange(self._shapes))
        self._seen.add((*x.shape, 0, *weight.shape))
        return x, weight

    def _forward(self, client: Client) -> None:
        x, weight = self._drawn()
        output = client.convolve(x, weight)
        if self._random.random() < CHECKED:
            np.testing.assert_array_equal(output, convolved(x, weight))

    def _into_an_array(self, client: Client) -> None:
        x, weight = self._drawn()
        given = client.empty(x.shape, x.dtype.name)
        given[...] = x
        expected = convolved(x, weight)
        out = client.empty(expected.shape, x.dtype.name)
        np.testing.assert_array_equal(client.convolve(given, weight, out=out), expected)

    def _gradients(self, client: Client) -> None:
        x, weight = (each.astype(np.float32) for each in self._drawn())
        sizes = [n - k + 1 for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)]
        grad_output = np.ones((x.shape[0], weight.shape[0], *sizes), np.float32)
        found = client.gradients(x, weight, grad_output, bias=True)
        np.testing.assert_array_equal(found.bias, np.full(len(weight), grad_output[:, 0].size, np.float32))

    def _stack(self, client: Client) -> None:
        x, weight = (each.astype(np.float32) for each in self._drawn())
        stack = client.stack([Conv(weight), Pool("max", 2)])
        assert np.isfinite(stack(x)).all()  # noqa: S101 - what fails is counted

    def _layer(self, client: Client) -> None:
        """Of new weights, which drive others out of the store."""
        x, weight = self._drawn()
        filled = np.full((64, *weight.shape[1:]), self._random.randrange(100), weight.dtype)
        layer = client.layer(filled)
        np.testing.assert_array_equal(layer(x), layer(x))

    def _map(self, client: Client) -> None:
        x, weight = self._drawn()
        frames = self._random.randrange(1, 20)
        outputs = list(client.layer(weight).map([x] * frames, in_flight=self._random.randrange(1, 9)))
        np.testing.assert_array_equal(outputs[-1], convolved(x, weight))

    def _plan(self, client: Client) -> None:
        x, weight = self._drawn()
        shape = client.plan(x.shape, weight.shape, x.dtype.name).output_shape
        assert math.prod(shape)  # noqa: S101 - what fails is counted

    def _info(self, client: Client) -> None:
        assert client.info().backends  # noqa: S101 - what fails is counted

    def _bad_request(self, client: Client) -> None:
        """Which the server alone can refuse."""
        try:
            client.held_layer(f"sha256:{self._random.randrange(16**64):064x}")
        except UnknownLayer:
            return
        raise AssertionError("a layer that nobody put is held")

    def _short_deadline(self, client: Client) -> None:
        x, weight = self._drawn()
        try:
            client.convolve(x, weight, timeout=self._random.choice((TOO_SHORT, 10 * TOO_SHORT)))
        except (DeadlineExceeded, Overloaded):  # which says so before it has passed
            return

    def _cancelled(self, client: Client) -> None:
        """A stream that is left while frames are in flight."""
        x, weight = self._drawn()
        outputs = client.layer(weight).map([x] * 20, in_flight=8)
        np.testing.assert_array_equal(next(outputs), convolved(x, weight))
        outputs.close()
