"""The bytes that a stack takes beside its input, weights and answer: what its layers take one after the other, with
what stands between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from convolver.core import cost, pooling_memory
from convolver.core.plan import Plan
from convolver.core.stack_plan import LayerPlan, StackPlan, runs_forward, tensor_bytes


def workspace_bytes(plan: StackPlan) -> int:
    """What the back end allocates, at most, but that torch's gradients are by and large."""
    return _gradient_bytes(plan) if plan.wanted else _forward_bytes(plan.layers)


def _forward_bytes(layers: Sequence[LayerPlan]) -> int:
    """The most of what a layer allocates, with its input and output, but the stack's own."""
    last = len(layers) - 1
    return max(
        layer.workspace_bytes + tensor_bytes(layer.input) * (i > 0) + tensor_bytes(layer.output) * (i < last)
        for i, layer in enumerate(layers)
    )


def _gradient_bytes(plan: StackPlan) -> int:
    """What the forward run leaves, and the most that a layer takes beside it, forward or backward."""
    layers = [(i, layer) for i, layer in enumerate(plan.layers) if runs_forward(plan, i)]
    kept = sum(_sums_bytes(layer) + tensor_bytes(layer.output) for _, layer in layers)
    forward = max((layer.workspace_bytes for _, layer in layers), default=0)
    return kept + max(forward, *(_backward_bytes(plan, i) for i in range(len(plan.layers))))


def _sums_bytes(layer: LayerPlan) -> int:
    """What an activation was applied to, in the accumulator's type."""
    if not isinstance(layer, Plan) or layer.operation.activation == "none":
        return 0
    return prod(layer.output.shape) * layer.operation.accumulator.itemsize


def _backward_bytes(plan: StackPlan, i: int) -> int:
    """The gradients at both ends of the layer, that of what its activation was applied to, and what computes them."""
    layer, wanted = plan.layers[i], plan.wanted_of(i)
    if wanted is None:
        return 0
    ends = tensor_bytes(layer.output) + tensor_bytes(layer.input) * wanted.input
    if not isinstance(layer, Plan):
        return ends + pooling_memory.gradient_workspace_bytes(layer.pooling, layer.backend)
    found = cost.estimate(layer.geometry, layer.backend, layer.threads, "direct", wanted)
    return ends + 2 * _sums_bytes(layer) + found.workspace_bytes
