"""Gradients against torch's own: its autograd over its own convolutions, and its check of differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.core.gradient_runs import gradients, operands
from tests.core.operations import BACKENDS, Array, operation, run

from convolver.core.dtypes import DTypeName
from convolver.core.operation import Operation

torch = pytest.importorskip("torch")

each_backend = pytest.mark.parametrize("name", BACKENDS)
each_type = pytest.mark.parametrize("dtype", ["float64", "complex128"])

FORWARD: list[tuple[tuple[int, ...], tuple[int, ...], Any]] = [
    ((2, 4, 9), (6, 2, 3), {"stride": 2, "padding": 1, "dilation": 2, "groups": 2}),
    ((3, 5, 8), (2, 5, 4), {"padding": 3}),
    ((5, 8), (2, 5, 4), {}),
    ((2, 3, 8, 7), (4, 3, 3, 2), {"stride": (2, 1), "padding": (1, 0)}),
    ((2, 3, 6, 5), (3, 1, 3, 3), {"padding": 1, "groups": 3}),
    ((1, 8, 6, 5), (1, 8, 3, 3), {"padding": 1}),
    ((1, 3, 10, 11), (2, 3, 2, 2), {"stride": 3}),
    ((2, 4, 4, 5, 3), (2, 4, 2, 3, 1), {"padding": 1, "stride": (1, 2, 1)}),
]
TRANSPOSED: list[tuple[tuple[int, ...], tuple[int, ...], Any]] = [
    ((2, 4, 5), (4, 3, 3), {"stride": 3, "padding": 1, "output_padding": 2, "groups": 2}),
    ((4, 5), (4, 3, 3), {"dilation": 2}),
    ((2, 3, 4, 5), (3, 2, 3, 2), {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}),
    ((1, 2, 3, 2, 4), (2, 2, 2, 2, 3), {"stride": 2, "output_padding": 1}),
]


def by_autograd(op: Operation, given: Any, x: Array, w: Array, g: Array) -> list[Array]:  # noqa: ANN401 - as callers write it
    """torch's gradients through torch.nn.functional."""
    kind = "conv_transpose" if op.transposed else "conv"
    convolve = getattr(torch.nn.functional, f"{kind}{op.ndim}d")
    leaves = [torch.from_numpy(array.copy()).requires_grad_() for array in (x, w, np.zeros(op.out_channels, x.dtype))]
    made = torch.autograd.grad(convolve(*leaves, **given), leaves, torch.from_numpy(g.copy()))
    return [each.numpy() for each in made]


@each_backend
@each_type
@pytest.mark.parametrize("transposed", [False, True], ids=["forward", "transposed"])
def test_they_are_autograds(name: str, dtype: DTypeName, transposed: bool) -> None:  # noqa: FBT001 - the field's own word
    for input_shape, weight_shape, given in TRANSPOSED if transposed else FORWARD:
        op = operation(input_shape, weight_shape, dtype, transposed=transposed, **given)
        x, w, g = operands(op, 3)
        made = gradients(name, op, x, w, g)
        for grad, expected in zip(made.values(), by_autograd(op, given, x, w, g), strict=True):
            np.testing.assert_allclose(grad, expected, rtol=1e-12, atol=1e-12)


class Convolution(torch.autograd.Function):  # type: ignore[name-defined, misc]  # importorskip gives no types
    """A convolution by the core, differentiated by the core."""

    @staticmethod
    def forward(ctx: Any, x: Any, w: Any, bias: Any, name: str, op: Operation) -> Any:  # noqa: ANN401 - torch's signature
        ctx.save_for_backward(x, w)
        ctx.name, ctx.operation = name, op
        x, w, bias = (each.detach().numpy() for each in (x, w, bias))
        return torch.from_numpy(run(op, x, w, bias, name))

    @staticmethod
    def backward(ctx: Any, grad_output: Any) -> Any:  # noqa: ANN401 - torch's signature
        x, w = (each.detach().numpy() for each in ctx.saved_tensors)
        made = gradients(ctx.name, ctx.operation, x, w, grad_output.detach().resolve_conj().numpy())
        return (*map(torch.from_numpy, made.values()), None, None)


CHECKED: list[tuple[tuple[int, ...], tuple[int, ...], Any]] = [
    ((1, 2, 5), (4, 1, 2), {"groups": 2, "padding": [(1, 2)], "padding_mode": "reflect", "flip": True}),
    ((2, 2, 4), (2, 2, 3), {"batch_groups": 2, "padding": "same", "stride": 2}),
    ((1, 4, 3, 2), (2, 2, 2, 3), {"layout": "channels_last", "padding": 2, "padding_mode": "circular"}),
    ((2, 4), (3, 2, 2), {"input_dilation": 3, "padding": [(-2, 4)], "padding_mode": "symmetric", "stride": 3}),
    ((1, 1, 3, 3), (1, 1, 2, 2), {"padding": [(3, 0), (-1, 2)], "padding_mode": "replicate", "dilation": 2}),
    ((1, 2, 4), (2, 2, 2), {"padding": "full", "padding_mode": "constant", "padding_value": 2.0}),
    ((1, 2, 3), (2, 1, 3), {"transposed": True, "stride": 2, "output_padding": 1, "padding": [(2, -1)], "flip": True}),
    (
        (1, 3, 4),
        (2, 2, 4),
        {"transposed": True, "groups": 2, "dilation": 2, "padding": "same", "layout": "channels_last"},
    ),
    ((1, 1, 2, 2, 3), (2, 1, 2, 1, 2), {"padding": "same_lower", "stride": 2}),
]


@each_backend
@each_type
@pytest.mark.parametrize("case", CHECKED, ids=str)
def test_they_are_the_limits_of_differences(name: str, dtype: DTypeName, case: Any) -> None:  # noqa: ANN401 - a row of the table
    input_shape, weight_shape, given = case
    op = operation(input_shape, weight_shape, dtype, **given)
    x, w, _ = operands(op, 7)
    leaves = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, w, np.ones(op.out_channels, x.dtype))]
    assert torch.autograd.gradcheck(lambda *each: Convolution.apply(*each, name, op), leaves)
