"""The activations on NumPy arrays, in the accumulator's type. Formulas: Hendrycks and Gimpel (GELU,
arXiv 1606.08415), Elfwing et al. (SiLU, arXiv 1702.03118), Clevert et al. (ELU, arXiv 1511.07289), Howard et al.
(hardswish, arXiv 1905.02244).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from convolver.core.backends import Array
from convolver.core.backends.erfc import erfc
from convolver.core.cancellation import checked
from convolver.core.parameters import Activation

BLOCK = 1 << 12
"""Elements that are activated at one time: the functions below make several copies of them."""


def activate(name: Activation, x: Array) -> None:
    """Each element of x becomes its activation."""
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    blocks: Any = np.nditer(x, flags, ["readwrite"], buffersize=BLOCK)
    with np.errstate(over="ignore", invalid="ignore"), blocks:
        for block in checked(blocks):
            block[...] = _FUNCTIONS[name](block)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    y: Array = np.where(x >= 0, 1, small) / (1 + small)
    return y


def _gelu(x: Array) -> Array:
    y: Array = x * 0.5 * erfc(x * -math.sqrt(0.5))
    return y


def _gelu_tanh(x: Array) -> Array:
    y: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
    return y


_FUNCTIONS: dict[Activation, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.01 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda x: x * sigmoid(x),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "softplus": lambda x: np.logaddexp(x, 0),
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}
