"""The complementary error function, which NumPy lacks: W. J. Cody, Rational Chebyshev approximations for the error
function (Mathematics of Computation 23, 1969). Its relative error stays below 1e-15 in float64 and 1e-6 in float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from convolver.core.backends import Array

Coefficients = Sequence[float]

_SMALL, _LARGE = 0.46875, 4.0
"""Bounds of |x| between Cody's three approximations."""

_SMALL_OVER: Coefficients = (
    1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2, 3.77485237685302021e2, 3.20937758913846947e3,
)  # fmt: skip
_SMALL_UNDER: Coefficients = (
    1.0, 2.36012909523441209e1, 2.44024637934444173e2, 1.28261652607737228e3, 2.84423683343917062e3,
)  # fmt: skip
_MIDDLE_OVER: Coefficients = (
    2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0, 6.61191906371416295e1,
    2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3,
)  # fmt: skip
_MIDDLE_UNDER: Coefficients = (
    1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3,
    3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3,
)  # fmt: skip
_LARGE_OVER: Coefficients = (
    1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1,
    1.60837851487422766e-2, 6.58749161529837803e-4,
)  # fmt: skip
_LARGE_UNDER: Coefficients = (
    1.0, 2.56852019228982242e0, 1.87295284992346725e0, 5.27905102951428412e-1, 6.05183413124413191e-2,
    2.33520497626869185e-3,
)  # fmt: skip


def erfc(x: Array) -> Array:
    """2/sqrt(pi) times the integral of exp(-t^2) from x to infinity, for each element of x, a float type's."""
    size = np.minimum(np.abs(x), 100)  # beyond 27 it is 0, and squares would pass the type's range
    y = np.where(size <= _SMALL, _small(np.minimum(size, _SMALL)), _middle(np.minimum(size, _LARGE)))
    large = size > _LARGE  # rare, and so the only one that is gathered
    if large.any():
        y[large] = _large(size[large])
    return np.where(x < 0, 2 - y, y)


def _small(size: Array) -> Array:
    square = size * size
    return 1 - size * _polynomial(_SMALL_OVER, square) / _polynomial(_SMALL_UNDER, square)


def _middle(size: Array) -> Array:
    return _gauss(size) * _polynomial(_MIDDLE_OVER, size) / _polynomial(_MIDDLE_UNDER, size)


def _large(size: Array) -> Array:
    inverse = 1 / (size * size)
    rest = inverse * _polynomial(_LARGE_OVER, inverse) / _polynomial(_LARGE_UNDER, inverse)
    return _gauss(size) * (math.sqrt(1 / math.pi) - rest) / size


def _gauss(size: Array) -> Array:
    """exp(-size^2), whose argument is split so that squaring it loses nothing."""
    head = np.trunc(size * 16) / 16
    y: Array = np.exp(-head * head) * np.exp(-(size - head) * (size + head))
    return y


def _polynomial(coefficients: Coefficients, x: Array) -> Array:
    """Horner's rule, the highest power's coefficient first."""
    y = coefficients[0] * x
    for coefficient in coefficients[1:-1]:
        y += coefficient
        y *= x
    y += coefficients[-1]
    return y
