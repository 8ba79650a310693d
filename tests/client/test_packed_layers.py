"""Layers with more weights than data, which torch packs once for each shape of input."""

from __future__ import annotations

import numpy as np
import pytest

from convolver.client import Client

pytest.importorskip("torch")


def test_a_form_is_packed_and_counted_for_each_shape_of_input(client: Client) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((128, 64, 3, 3), np.float32)
    layer = client.layer(weight, backend="torch")
    held = []
    for size in (7, 9, 7):
        x = rng.standard_normal((1, 64, size, size), np.float32)
        np.testing.assert_allclose(layer(x), client.conv2d(x, weight, backend="torch"), rtol=1e-4, atol=1e-3)
        held.append(client.held_layer(layer.digest).bytes)
    first, second, third = held
    assert first >= 2 * weight.nbytes
    assert second - first == weight.nbytes
    assert third == second
    client.delete_layer(layer.digest)


def test_deterministic_calls_of_a_layer_have_the_bits_of_calls_with_its_weights(client: Client) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((128, 64, 3, 3), np.float32), rng.standard_normal((1, 64, 7, 7), np.float32)
    layer = client.layer(weight, backend="torch", deterministic=True)
    np.testing.assert_array_equal(layer(x), client.conv2d(x, weight, backend="torch", deterministic=True))
    client.delete_layer(layer.digest)
