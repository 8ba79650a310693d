"""Derivatives of the activations against torch's autograd and, far out, against what they must come to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.core.operations import ACTIVATIONS, Array

from convolver.core.backends import activation_gradients
from convolver.core.backends.activation_gradients import activation_gradient
from convolver.core.parameters import Activation

USUAL = [0.0, 1e-300, 1e-30, 1e-8, 0.01, 0.5, 1.0, 2.9999, 3.0, 3.0001, 5.9999, 6.0, 6.0001, 6.5, 8.5, 20.0, 21.0, 36.0]
GRID = np.array([sign * value for value in USUAL for sign in (1, -1)])
GRAD = np.linspace(-2, 3, GRID.size)

each_activation = pytest.mark.parametrize("name", ACTIVATIONS[1:])


def by_torch(name: Activation, x: Array, grad: Array) -> Array:
    """torch's own gradient, through the functions of the torch back end."""
    torch = pytest.importorskip("torch")
    from convolver.core.backends.torch import _ACTIVATIONS

    leaf = torch.from_numpy(x.copy()).requires_grad_()
    (made,) = torch.autograd.grad(_ACTIVATIONS[name](leaf), leaf, torch.from_numpy(grad))
    result: Array = made.numpy()
    return result


@each_activation
@pytest.mark.parametrize(("dtype", "within"), [("float64", 2e-14), ("float32", 2e-6)])
def test_they_are_torchs_at_kinks_too(name: Activation, dtype: str, within: float) -> None:
    x, grad = GRID.astype(dtype), GRAD.astype(dtype)
    made = activation_gradient(name, x, grad)
    assert made.dtype == dtype
    np.testing.assert_allclose(made, by_torch(name, x, grad), rtol=within, atol=within)


@each_activation
def test_they_are_the_slope_of_the_activation(name: Activation) -> None:
    """By a central difference in double precision, away from kinks."""
    from convolver.core.backends.activations import activate

    x, step = np.linspace(-7.9, 7.9, 80), 1e-5
    before, after = x - step, x + step
    for each in (before, after):
        activate(name, each)
    slope = (after - before) / (2 * step)
    np.testing.assert_allclose(activation_gradient(name, x, np.ones_like(x)), slope, rtol=1e-8, atol=1e-9)


KINKS: dict[Activation, dict[float, float]] = {
    "relu": {0.0: 0},
    "relu6": {0.0: 0, 6.0: 0},
    "leaky_relu": {0.0: 0.01},
    "elu": {0.0: 1},
    "hardswish": {-3.0: 0, 3.0: 1},
}


@pytest.mark.parametrize("name", KINKS)
def test_at_a_kink_it_is_one_sides(name: Activation) -> None:
    x = np.array(list(KINKS[name]))
    assert activation_gradient(name, x, np.ones_like(x)).tolist() == list(KINKS[name].values())


LIMITS: dict[Activation, tuple[float, float]] = {
    name: {"leaky_relu": (0.01, 1.0), "relu6": (0.0, 0.0), "sigmoid": (0.0, 0.0), "tanh": (0.0, 0.0)}.get(
        name, (0.0, 1.0)
    )
    for name in ACTIVATIONS[1:]
}


@each_activation
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_far_out_it_is_the_limit(name: Activation, dtype: str) -> None:
    """Where torch's GELU by tanh has come to 0 times infinity."""
    far = np.array([1e3, 1e20, 1e37, np.inf], dtype)
    for sign, limit in zip((-1, 1), LIMITS[name], strict=True):
        made = activation_gradient(name, sign * far, np.full_like(far, 3))
        np.testing.assert_array_equal(made, np.full_like(far, limit) * np.array(3, dtype))


@pytest.mark.parametrize("name", ["relu", "relu6"])
def test_what_is_cut_off_takes_no_infinity_with_it(name: Activation) -> None:
    grad = np.array([np.inf, np.nan])
    assert activation_gradient(name, np.array([-1.0, -1.0]), grad).tolist() == [0, 0]


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "elu", "hardswish"])
def test_at_nan_it_is_torchs(name: Activation) -> None:
    torch = pytest.importorskip("torch")
    x = torch.tensor([float("nan")], requires_grad=True)
    torch.autograd.backward(getattr(torch.nn.functional, name)(x).sum())
    made = activation_gradient(name, np.array([np.nan], "float32"), np.ones(1, "float32"))
    np.testing.assert_array_equal(made, x.grad.numpy())


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "sigmoid", "tanh", "softplus"])
def test_nan_stays_nan(name: Activation) -> None:
    made = activation_gradient(name, np.array([np.nan, 1]), np.ones(2))
    assert np.isnan(made).tolist() == [True, False]


def test_none_hands_the_gradient_on_as_an_array_of_its_own() -> None:
    made = activation_gradient("none", GRID, GRAD)
    assert made.tolist() == GRAD.tolist()
    assert not np.shares_memory(made, GRAD)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_empty_array_stays_empty(name: Activation) -> None:
    assert activation_gradient(name, np.empty((0, 3)), np.empty((0, 3))).shape == (0, 3)


@each_activation
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_blocks_and_layouts_in_memory_make_no_difference(
    name: Activation, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Any = np.array([GRID, -GRID, 2 * GRID]), np.array([GRAD, 2 * GRAD, GRAD])
    expected = activation_gradient(name, *whole)
    monkeypatch.setattr(activation_gradients, "BLOCK", block)
    x, grad = (np.repeat(each, 2, axis=1).T[::2] for each in whole)
    x.flags.writeable = grad.flags.writeable = False
    np.testing.assert_array_equal(activation_gradient(name, x, np.asfortranarray(grad)).T, expected)
