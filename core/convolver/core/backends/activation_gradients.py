"""The derivatives of the activations on NumPy arrays, in the accumulator's type; at kinks they are torch's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from convolver.core.backends import Array
from convolver.core.backends.activations import BLOCK, sigmoid
from convolver.core.backends.erfc import erfc
from convolver.core.cancellation import checked
from convolver.core.parameters import Activation

FLAT = 1000.0
"""Beyond it every smooth derivative is 0 or 1 to the last bit, and its formula may run into 0 times infinity."""


def activation_gradient(name: Activation, x: Array, grad: Array) -> Array:
    """The gradient with respect to x, of that with respect to the activation of x: a fresh array of their dtype."""
    out = np.empty_like(grad)
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    modes: Any = [["readonly"], ["readonly"], ["writeonly"]]
    blocks: Any = np.nditer([x, grad, out], flags, modes, buffersize=BLOCK)
    with np.errstate(all="ignore"), blocks:
        for place, given, target in checked(blocks):
            target[...] = _FUNCTIONS[name](place, given)
    return out


def _smooth(derivative: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda x, grad: grad * derivative(np.clip(x, -FLAT, FLAT))


def _sigmoid_slope(x: Array) -> Array:
    return sigmoid(x) * sigmoid(-x)


def _silu_slope(x: Array) -> Array:
    y: Array = sigmoid(x) * (1 + x * sigmoid(-x))
    return y


def _gelu_slope(x: Array) -> Array:
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    y: Array = 0.5 * erfc(x * -math.sqrt(0.5)) + x * density
    return y


def _gelu_tanh_slope(x: Array) -> Array:
    rise = math.sqrt(2 / math.pi)
    t = np.tanh(rise * (x + 0.044715 * x * x * x))
    y: Array = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * rise * (1 + 3 * 0.044715 * x * x)
    return y


_FUNCTIONS: dict[Activation, Callable[[Array, Array], Array]] = {
    "none": lambda _, grad: grad,
    "relu": lambda x, grad: np.where(x <= 0, 0, grad),
    "relu6": lambda x, grad: np.where((x <= 0) | (x >= 6), 0, grad),
    "leaky_relu": lambda x, grad: np.where(x > 0, grad, 0.01 * grad),
    "elu": lambda x, grad: np.where(x <= 0, grad * np.exp(np.minimum(x, 0)), grad),
    "gelu": _smooth(_gelu_slope),
    "gelu_tanh": _smooth(_gelu_tanh_slope),
    "silu": _smooth(_silu_slope),
    "sigmoid": _smooth(_sigmoid_slope),
    "tanh": _smooth(lambda x: 1 / np.square(np.cosh(x))),
    "softplus": _smooth(sigmoid),
    "hardswish": lambda x, grad: np.where(x <= -3, 0, np.where(x < 3, grad * (x / 3 + 0.5), grad)),
}
