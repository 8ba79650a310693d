"""Activations against their formulas in double precision, with torch as a second witness."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.core import oracle
from tests.core.operations import ACTIVATIONS, BACKENDS, Array, run

from convolver.core.backends import activations
from convolver.core.backends.activations import activate
from convolver.core.backends.erfc import erfc
from convolver.core.operation import Tensor
from convolver.core.parameters import Activation
from convolver.core.parse import parse

TINY = [0.0, 1e-300, 1e-30, 1e-8]
USUAL = [0.01, 0.5, 1.0, 2.9999, 3.0, 5.9999, 6.0, 6.5, 8.5, 20.0, 21.0]
LARGE = [38.0, 88.0, 89.0, 700.0, 746.0, 1e30]
GRID = np.array([sign * value for value in TINY + USUAL + LARGE for sign in (1, -1)])


def activated(name: Activation, x: Array) -> Array:
    """A copy, activated."""
    y = x.copy()
    activate(name, y)
    return y


each_activation = pytest.mark.parametrize("name", ACTIVATIONS[1:])


@each_activation
def test_doubles_have_the_formulas_values_in_the_tails_too(name: Activation) -> None:
    expected, y = oracle.activated(name, GRID), activated(name, GRID)
    np.testing.assert_allclose(y, expected, rtol=4e-14, atol=5e-16)


@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-15), ("float32", 1e-6)])
def test_the_complementary_error_function_is_the_c_librarys(dtype: str, rtol: float) -> None:
    x = np.concatenate([np.linspace(-7, 9, 20_001), [0.0, -0.0, 0.46875, 4.0, -4.0, np.inf, -np.inf]]).astype(dtype)
    expected = np.vectorize(math.erfc)(x.astype(np.float64))
    y = erfc(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, expected, rtol=rtol, atol=1e-38 if dtype == "float32" else 0)
    assert np.isnan(erfc(np.array([np.nan], dtype)))


def test_gelu_is_exact_far_out_where_1_plus_erf_has_cancelled() -> None:
    far = np.array([-5.0, -8.5, -20.0])
    np.testing.assert_allclose(activated("gelu", far), oracle.activated("gelu", far), rtol=1e-12)


@each_activation
def test_they_are_torchs_own(name: Activation) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    torchs: dict[str, Any] = {
        "leaky_relu": lambda x: functional.leaky_relu(x, 0.01),
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    }
    x = torch.from_numpy(GRID[np.abs(GRID) < 20])  # where torch's softplus is still a softplus
    theirs = (torchs.get(name) or getattr(functional, name))(x).numpy()
    np.testing.assert_allclose(activated(name, x.numpy()), theirs, rtol=1e-13, atol=2e-15)


@each_activation
def test_a_type_is_kept_and_nan_stays_nan(name: Activation) -> None:
    for dtype in (np.float32, np.float64):
        y = activated(name, np.array([np.nan, 1], dtype))
        assert y.dtype == dtype
        assert np.isnan(y).tolist() == [True, False]


LIMITS: dict[Activation, tuple[float, float]] = {
    "relu": (0, np.inf),
    "relu6": (0, 6),
    "leaky_relu": (-np.inf, np.inf),
    "elu": (-1, np.inf),
    "sigmoid": (0, 1),
    "tanh": (-1, 1),
    "softplus": (0, np.inf),
}


@pytest.mark.parametrize("name", LIMITS)
def test_infinities_are_taken_to_the_limits(name: Activation) -> None:
    assert activated(name, np.array([-np.inf, np.inf])).tolist() == list(LIMITS[name])


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "hardswish"])
def test_plus_infinity_stays(name: Activation) -> None:
    assert activated(name, np.array([np.inf])).tolist() == [np.inf]


def test_none_is_the_identity_and_an_empty_array_stays_empty() -> None:
    assert activated("none", GRID).tolist() == GRID.tolist()
    for name in ACTIVATIONS:
        assert activated(name, np.empty((0, 3), np.float32)).shape == (0, 3)


@each_activation
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_blocks_and_layouts_in_memory_make_no_difference(
    name: Activation, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "BLOCK", block)
    whole = np.array([GRID, -GRID, 2 * GRID])
    view = np.repeat(whole, 2, axis=1).T[::2]
    activate(name, view)
    np.testing.assert_array_equal(view.T, oracle.activated(name, whole) if name == "relu" else activated(name, whole))


def convolved(dtype: Any, name: Activation, backend: str, bias: Array) -> tuple[Array, Array]:  # noqa: ANN401 - a DTypeName
    """The grid through a convolution that copies it, on a back end and in the oracle."""
    x = GRID[np.abs(GRID) < oracle.largest_finite(dtype)].astype(dtype).reshape(1, 1, -1)
    w = np.ones((1, 1, 1), dtype)
    op = parse(Tensor(dtype, x.shape), Tensor(dtype, w.shape), Tensor(dtype, (1,)), {"activation": name})
    y = run(op, x, w, bias, backend)
    oracle.assert_agrees(op, y, x, w, bias)
    return y, x


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@each_activation
def test_back_ends_apply_them_within_the_tolerance(name: Activation, dtype: str, backend: str) -> None:
    convolved(dtype, name, backend, np.zeros(1, dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_bias_comes_first(backend: str) -> None:
    y, _ = convolved("float32", "relu", backend, np.full(1, -1, np.float32))
    assert float(y[0, 0, GRID.tolist().index(0.5)]) == 0
    assert float(y[0, 0, GRID.tolist().index(3.0)]) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_activation_comes_before_the_one_rounding(backend: str) -> None:
    """1000 + 0.25 is 1000 in float16, and so is 999.75 + 0.5; but relu6's 6 is reached by neither rounding."""
    x = np.array([1000, 999.5], np.float16).reshape(1, 2, 1)
    w = np.array([1, -1], np.float16).reshape(1, 2, 1)
    op = parse(Tensor("float16", x.shape), Tensor("float16", w.shape), None, {"activation": "tanh"})
    y = run(op, x, w, name=backend)
    assert float(y[0, 0, 0]) == float(np.float16(np.tanh(0.5)))
