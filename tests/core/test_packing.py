"""Weights that are packed once for oneDNN: when, and that the sums stay what they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.core.operations import operation

from convolver.core.backends import available
from convolver.core.choose import choose
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution
from convolver.core.packing import packs
from convolver.core.plan import Plan

pytest.importorskip("torch")

DEEP = ((1, 64, 7, 7), (128, 64, 3, 3))
"""More weights than input and output together."""


def planned(input_shape: Any, weight_shape: Any, dtype: Any = "float32", backend: str = "torch", **given: Any) -> Plan:  # noqa: ANN401 - of any operation
    [chosen] = available(backend, 2)
    how = Execution(backend=backend, algorithm="direct", deterministic=given.pop("deterministic", False))
    return choose(Geometry.of(operation(input_shape, weight_shape, dtype, **given)), how, [chosen.capability])


@pytest.mark.parametrize(
    "given",
    [{}, {"padding": 1}, {"stride": 2, "padding": 2}, {"dilation": 2}, {"activation": "relu", "padding": "same"}],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_packed_layer_gives_what_a_plain_one_does(given: dict[str, Any], dtype: Any) -> None:  # noqa: ANN401 - a DTypeName
    plan = planned(*DEEP, dtype, **given)
    assert packs(plan)
    [backend] = available("torch", 2)
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(plan.geometry.output.dtype) for shape in DEEP)
    bias = rng.standard_normal(128).astype(x.dtype)
    packed = backend.prepare(plan, w, bias, stays=True)
    assert backend.prepared_bytes(plan, packed) == w.size * 4
    plain = backend.run(plan, backend.prepare(plan, w, bias), x).output.astype("float64")
    once, again = (backend.run(plan, packed, x).output.astype("float64") for _ in range(2))
    linear = planned(*DEEP, dtype, **{**given, "activation": "none"})
    absolutes = backend.run(linear, backend.prepare(linear, abs(w), abs(bias)), abs(x)).output.astype("float64")
    roundings = (64 * 9 + 4) * 2.0**-24 * 1.2 * absolutes  # of the sums, each within its bound (docs/semantics.md)
    assert (
        abs(once - plain) <= 2 * roundings + 4 * {"float32": 2.0**-24, "bfloat16": 2.0**-9}[dtype] * abs(plain)
    ).all()
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize(
    ("shapes", "given"),
    [
        (((1, 64, 56, 56), (64, 64, 3, 3)), {}),
        (((1, 8, 5, 5), (64, 8, 3, 3)), {}),
        (((0, 64, 7, 7), DEEP[1]), {}),
        (((1, 64, 3, 3), DEEP[1]), {}),
        (((1, 128, 7, 7), DEEP[1]), {"groups": 2}),
        (DEEP, {"deterministic": True}),
        (DEEP, {"padding": [(0, 1), (0, 1)]}),
        (DEEP, {"padding": 1, "padding_mode": "reflect"}),
        (DEEP, {"input_dilation": 2}),
        (DEEP, {"dtype": "float64"}),
        (DEEP, {"backend": "reference"}),
        (((1, 64, 7, 7), (64, 128, 3, 3)), {"transposed": True}),
        (((1, 64, 9), (512, 64, 7)), {}),
    ],
    ids=str,
)
def test_what_would_not_pay_or_not_be_the_same_is_not_packed(shapes: Any, given: dict[str, Any]) -> None:  # noqa: ANN401 - two shapes
    assert not packs(planned(*shapes, **given))
