"""What the tests of gradients share: what they draw, and what runs it on each back end."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from tests.core.operations import Array, Draw, arrays, requests, usual

from convolver.core.backends import reference_gradients
from convolver.core.dtypes import DTypeName
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Operation

EVERYTHING = Wanted(input=True, weight=True, bias=True)


@st.composite
def differentiable(draw: st.DrawFn, dtype: DTypeName = "float32") -> Operation:
    """Operations of every kind that have gradients."""
    request = draw(requests(dtype))
    return request._replace(parameters={**request.parameters, "activation": None}).operation


def operands(op: Operation, seed: int, draw: Draw | None = None) -> tuple[Array, Array, Array]:
    """Read-only input, weight and grad_output."""
    x, w, _ = arrays(op, seed, draw)
    g = (draw or usual)(np.random.default_rng(seed + 1), op.output_dtype, Geometry.of(op).output_shape)
    g.flags.writeable = False
    return x, w, g


def gradients(
    name: str, op: Operation, x: Array | None, w: Array | None, g: Array, wanted: Wanted = EVERYTHING
) -> dict[str, Array]:
    """The gradients on the back end of that name."""
    geometry = Geometry.of(op)
    if name == "reference":
        return reference_gradients.gradients(geometry, wanted, x, w, g)
    from convolver.core.backends import torch_arrays, torch_gradients

    items, kernels = (None if a is None else torch_arrays.tensor(a, op.dtype) for a in (x, w))
    grads = torch_gradients.gradients(geometry, wanted, items, kernels, torch_arrays.tensor(g, op.output_dtype))
    return {each: torch_arrays.received(grad, op.dtype) for each, grad in grads.items()}
