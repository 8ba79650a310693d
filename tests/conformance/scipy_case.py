"""SciPy's signal.convolve and correlate, and ndimage.convolve and correlate, in this service's words.

Arrays have no channels there: each call is one item of one channel with one kernel. Every function gives the call's
arrays and parameters as `Client.run` takes them, and what to do with its output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tests.conformance.served import Served

from convolver.client import Answer

Array = NDArray[Any]

MODES = {
    "reflect": "symmetric",
    "grid-mirror": "symmetric",
    "constant": "constant",
    "grid-constant": "constant",
    "nearest": "replicate",
    "mirror": "reflect",
    "wrap": "circular",
    "grid-wrap": "circular",
}
"""ndimage's words for what stands outside, and this service's."""


class Convolution(NamedTuple):
    """One call: what goes in, and how its output becomes SciPy's."""

    input: Array
    weight: Array
    parameters: dict[str, Any]
    finished: Callable[[Array], Array] = lambda y: y

    def run(self, served: Served) -> tuple[Array, Answer]:
        """SciPy's array, and the answer that it came from."""
        answer = served.run(self.input, self.weight, **self.parameters)
        return self.finished(answer.output)[0, 0], answer


def convolve(a: Array, v: Array, mode: str) -> Convolution:
    """`signal.convolve(a, v, mode, "direct")`: the kernel turned; integers wrap."""
    if mode == "valid" and fits_inside(a, v):
        a, v = v, a
    return Convolution(_one(a), _one(v), {"flip": True, "padding": _padding(v, mode), "overflow": "wrap"})


def correlate(a: Array, v: Array, mode: str) -> Convolution:
    """`signal.correlate(a, v, mode, "direct")`: the kernel conjugated; where v is the larger, the two change places and
    the output is turned and conjugated.
    """
    if mode == "valid" and fits_inside(a, v):
        turned = correlate(v, a, mode)
        return turned._replace(finished=lambda y: np.conj(np.flip(y, tuple(range(2, y.ndim)))))
    return Convolution(_one(a), _one(_conjugate(v)), {"padding": _padding(v, mode), "overflow": "wrap"})


def fits_inside(a: Array, v: Array) -> bool:
    """Whether a is nowhere larger than v, and somewhere smaller."""
    return a.shape != v.shape and all(i <= k for i, k in zip(a.shape, v.shape, strict=True))


def filtered(name: str, a: Array, w: Array, mode: str, cval: float, origin: Sequence[int]) -> Convolution:
    """`ndimage.correlate` or `ndimage.convolve(a, w, mode=mode, cval=cval, origin=origin)`: as large as a, the kernel's
    centre at k//2 + origin; convolve turns the kernel, and its centre with it; correlate conjugates it.
    """
    turned = name == "convolve"
    centres = [k // 2 + o for k, o in zip(w.shape, origin, strict=True)]
    begins = [k - 1 - c if turned else c for c, k in zip(centres, w.shape, strict=True)]
    pairs = [(begin, k - 1 - begin) for begin, k in zip(begins, w.shape, strict=True)]
    parameters: dict[str, Any] = {"flip": turned, "padding": pairs, "padding_mode": MODES[mode]}
    if MODES[mode] == "constant":
        parameters["padding_value"] = cval
    return Convolution(_one(a), _one(w if turned else _conjugate(w)), parameters)


def _conjugate(array: Array) -> Array:
    return np.conj(array) if np.iscomplexobj(array) else array  # NumPy's conj of bool is int8


def _one(array: Array) -> Array:
    return array[np.newaxis, np.newaxis]


def _padding(v: Array, mode: str) -> Any:  # noqa: ANN401 - Padding
    """`same` is the middle of `full`, as large as the first array: (k-1)//2 of its elements are left out before."""
    return [(k - 1 - (k - 1) // 2, (k - 1) // 2) for k in v.shape] if mode == "same" else mode
