"""Layers one after the other, forward and back, for arrays of NumPy and tensors of torch alike: the steps that each
library takes in its own way are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from convolver.core.backends import Array, LayerWeights, Outcome, Prepared
from convolver.core.cancellation import checked
from convolver.core.dtypes import TABLE
from convolver.core.errors import IntegerOverflow
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Operation
from convolver.core.plan import Plan
from convolver.core.pooling import Pooling
from convolver.core.stack_memory import reads_input
from convolver.core.stack_plan import LayerPlan, PoolingPlan, StackPlan, runs_forward

Tensor = Any
"""An array of NumPy or a tensor of torch."""

LayerWeight = LayerWeights | None
"""None for pooling."""


class Steps(NamedTuple):
    """What a library does. `sums` are canonical (N, O, *size), in the accumulator's type and with bias; all else is in
    the operation's layout. `activated` may write to its sums, of which `saved` is what stays then. `output` rounds sums
    to the output_dtype, `gradients` and `pool_gradient` theirs to the dtype; `activation_gradient`, given the sums and
    the gradient of what they became, is in the accumulator's type. `pool_gradient` reads the input for maxima alone.
    """

    sums: Callable[[Plan, Prepared, Tensor], Tensor]
    saved: Callable[[Tensor], Tensor]
    activated: Callable[[Operation, Tensor], Tensor]
    output: Callable[[Operation, Tensor], Tensor]
    gradients: Callable[[Geometry, Wanted, Tensor | None, Array | None, Tensor], dict[str, Tensor]]
    activation_gradient: Callable[[Operation, Tensor, Tensor], Tensor]
    pool: Callable[[Pooling, Tensor], Tensor]
    pool_gradient: Callable[[Pooling, Tensor | None, Tensor], Tensor]


def convolved(steps: Steps, plan: Plan, prepared: Prepared, x: Tensor) -> Tensor:
    """The output of one convolution."""
    sums = steps.sums(plan, prepared, x)
    if plan.operation.activation != "none":
        sums = steps.activated(plan.operation, sums)
    return steps.output(plan.operation, sums)


def run(steps: Steps, plan: StackPlan, weights: Sequence[LayerWeight], x: Tensor) -> dict[str, Tensor]:
    """The last layer's output. Raises IntegerOverflow naming the layer."""
    for i, (layer, given) in enumerate(checked(zip(plan.layers, weights, strict=True))):
        with _naming(i):
            x = _output(steps, layer, given, x)
    return {"output": x}


def gradients(
    steps: Steps, plan: StackPlan, weights: Sequence[LayerWeight], x: Tensor, grad_output: Tensor
) -> dict[str, Tensor]:
    """The gradients that the plan lists, backpropagated through what a forward run leaves. Roundings between the layers
    count as the identity.
    """
    kept = list(_forward(steps, plan, weights, x))
    made: dict[str, Tensor] = {}
    g = grad_output.real if TABLE[plan.dtype].kind == "float" else grad_output
    for i in checked(reversed(range(len(plan.layers)))):
        wanted = plan.wanted_of(i)
        if wanted is None:
            break
        grads = _backward(steps, plan.layers[i], wanted, weights[i], kept.pop(), g)
        g = grads.pop("grad_input", None)
        made.update({f"layers[{i}].{name}": grad for name, grad in grads.items()})
    made["grad_input"] = g
    return {name: made[name] for name in plan.outputs}


def of_an_empty_batch(plan: StackPlan, out: Array | None = None) -> Outcome | None:
    """What such an input gives: an empty output, and gradients of zeros. None where there are items."""
    batched = len(plan.input.shape) == plan.ndim + 2
    if not batched or plan.input.shape[0]:
        return None
    outputs = {name: np.zeros(shape, TABLE[dtype].numpy) for name, (dtype, shape) in plan.outputs.items()}
    if out is not None:
        outputs["output"] = out
    return Outcome(outputs, {"copy_in": 0.0, "compute": 0.0, "copy_out": 0.0})


def prepared_bytes(plan: Plan, prepared: Prepared, *, on_another_device: bool = False) -> int:
    """Bytes of what is not a view of weight and bias as they came."""
    op = plan.operation
    widened = on_another_device or (op.accumulator.name != op.dtype and not TABLE[op.dtype].exact)
    turned = plan.algorithm == "fft" or op.flip or op.layout == "channels_last"
    weight = prepared.weight.nbytes if widened or turned else 0
    return int(weight + (prepared.bias.nbytes if widened and prepared.bias is not None else 0))


class _Kept(NamedTuple):
    """Of a layer's forward run, as far as its gradients read it: the input, and what its activation was applied to."""

    input: Tensor | None
    sums: Tensor | None


def _output(steps: Steps, layer: LayerPlan, given: LayerWeight, x: Tensor) -> Tensor:
    if isinstance(layer, PoolingPlan):
        return steps.pool(layer.pooling, x)
    return convolved(steps, layer, _required(given).prepared(layer), x)


def _forward(steps: Steps, plan: StackPlan, weights: Sequence[LayerWeight], x: Tensor) -> Iterator[_Kept]:
    """What each layer's gradients need of it. The last one's output is not computed."""
    for i, (layer, given) in enumerate(checked(zip(plan.layers, weights, strict=True))):
        wanted = plan.wanted_of(i)
        needed = wanted is not None and reads_input(layer, wanted)
        sums, before = None, x
        if i < len(plan.layers) - 1:
            sums, x = _recorded(steps, layer, given, x)
        elif isinstance(layer, Plan) and runs_forward(plan, i):
            sums = steps.sums(layer, _required(given).prepared(layer), x)
        yield _Kept(before if needed else None, sums if wanted else None)


def _recorded(steps: Steps, layer: LayerPlan, given: LayerWeight, x: Tensor) -> tuple[Tensor | None, Tensor]:
    """What the layer's activation is applied to, if it has one, and its output."""
    if isinstance(layer, PoolingPlan) or layer.operation.activation == "none":
        return None, _output(steps, layer, given, x)
    op, sums = layer.operation, steps.sums(layer, _required(given).prepared(layer), x)
    kept = steps.saved(sums)
    return kept, steps.output(op, steps.activated(op, sums))


def _backward(
    steps: Steps, layer: LayerPlan, wanted: Wanted, given: LayerWeight, kept: _Kept, g: Tensor
) -> dict[str, Tensor]:
    """The gradients of one layer, given that with respect to its output."""
    if isinstance(layer, PoolingPlan):
        return {"grad_input": steps.pool_gradient(layer.pooling, kept.input, g)}
    op = layer.operation
    if kept.sums is not None:
        g = steps.activation_gradient(op, kept.sums, g)
    linear = replace(layer.geometry, operation=replace(op, activation="none"))
    return steps.gradients(linear, wanted, kept.input, _required(given).weight, g)


def _required(given: LayerWeight) -> LayerWeights:
    """Raises ValueError where a convolution has no weights."""
    if given is None:
        raise ValueError("a convolution's weights are missing")
    return given


@contextmanager
def _naming(i: int) -> Iterator[None]:
    try:
        yield
    except IntegerOverflow as error:
        raise IntegerOverflow(f"layers[{i}].{error.message}") from None
