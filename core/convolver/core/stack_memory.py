"""The bytes that a stack takes beside its input, weights and answer: what its layers take one after the other, with
what stands between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from convolver.core import gradients, pooling_memory
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
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
    """The most that stands at one time: on the way forward, what each layer leaves for its gradients; on the way back,
    where layer after layer drops that again, what computes them. grad_output and grad_input are not counted.
    """
    kept, most, last = [0], 0, len(plan.layers) - 1
    for i, layer in enumerate(plan.layers):
        if runs_forward(plan, i):
            ends = _between(layer.input, i > 0) + tensor_bytes(layer.output)
            most = max(most, kept[-1] + ends + _sums_bytes(layer) + layer.workspace_bytes)
        kept.append(kept[-1] + _kept_bytes(plan, i))
    for i, layer in enumerate(plan.layers):
        ends = _between(layer.input, i > 0) + _between(layer.output, i < last)
        most = max(most, kept[i + 1] + ends + _backward_bytes(plan, i))
    return most


def _between(tensor: Tensor, inside: bool) -> int:  # noqa: FBT001 - whether it is the stack's own or between layers
    return tensor_bytes(tensor) if inside else 0


def _kept_bytes(plan: StackPlan, i: int) -> int:
    """What the forward run leaves for layer i's gradients: its input, and what its activation was applied to."""
    layer, wanted = plan.layers[i], plan.wanted_of(i)
    if wanted is None:
        return 0
    return _between(layer.input, i > 0 and reads_input(layer, wanted)) + _sums_bytes(layer)


def reads_input(layer: LayerPlan, wanted: Wanted) -> bool:
    """Whether one of the gradients wanted of a layer is computed from its input."""
    return wanted.weight if isinstance(layer, Plan) else layer.pooling.kind == "max"


def _sums_bytes(layer: LayerPlan) -> int:
    """What an activation was applied to, in the accumulator's type."""
    if not isinstance(layer, Plan) or layer.operation.activation == "none":
        return 0
    return prod(layer.output.shape) * layer.operation.accumulator.itemsize


def _backward_bytes(plan: StackPlan, i: int) -> int:
    """What computes layer i's gradients. torch's autograd has three tensors of an activation, and its result."""
    layer, wanted = plan.layers[i], plan.wanted_of(i)
    if wanted is None:
        return 0
    if not isinstance(layer, Plan):
        return pooling_memory.gradient_workspace_bytes(layer.pooling, layer.backend)
    sums = _sums_bytes(layer)
    if layer.backend == "reference":
        return sums + max(sums, gradients.workspace_bytes(layer.geometry, wanted))
    return sums + max(3 * sums, gradients.torch_workspace_bytes(layer.geometry, wanted, layer.threads))
