"""What the tests of stacks share: what they draw, what runs it, and the same layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, get_args

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from tests.core import gradient_runs, test_pooling
from tests.core.operations import ACTIVATIONS, MODES, WIDEST, Array, arrays, backend, usual

from convolver.core.backends import LayerWeights, Prepared
from convolver.core.backends.activation_gradients import FLAT, activation_gradient
from convolver.core.choose_stack import choose_stack
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution, Operation, Tensor
from convolver.core.parameters import Algorithm
from convolver.core.plan import Plan
from convolver.core.pooling import PoolingKind, PoolingParameters
from convolver.core.stack import ConvolutionLayer, Layer, Step, parse_stack
from convolver.core.stack_plan import PoolingPlan, StackPlan

EVERYTHING = Wanted(input=True, weight=True, bias=True)
LARGEST_TENSOR = 400
KINDS: Sequence[PoolingKind] = get_args(PoolingKind)


class Stack(NamedTuple):
    """What a caller says."""

    input: Tensor
    layers: tuple[Layer, ...]
    output_dtype: DTypeName | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        return parse_stack(self.input, self.layers, {"output_dtype": self.output_dtype})


class Operands(NamedTuple):
    """Read-only arrays: `weights` has weight and bias of each convolution, None for pooling."""

    x: Array
    weights: list[tuple[Array, Array | None] | None]
    g: Array


def convolution(weight: tuple[int, ...], *, bias: bool = True, dtype: DTypeName = "float32", **words: Any) -> Layer:  # noqa: ANN401 - as callers write them
    """A layer with a weight of this shape."""
    ends = weight[:-3:-1] if words.get("layout") == "channels_last" else weight[:2]
    first = ends[1] * words.get("groups", 1) if words.get("transposed") else ends[0]
    parameters: Any = words
    return ConvolutionLayer(Tensor(dtype, weight), Tensor(dtype, (first,)) if bias else None, parameters)


def pooling(kind: PoolingKind, **words: Any) -> Layer:  # noqa: ANN401 - as callers write them
    made: Any = {"kind": kind, **words}
    layer: PoolingParameters = made
    return layer


def plan_of(name: str, stack: Stack, wanted: Wanted | None = None, algorithm: Algorithm = "direct") -> StackPlan:
    execution = Execution(backend=name, algorithm=algorithm)
    return choose_stack(stack.steps, execution, [backend(name).capability], None, wanted)


def layer_weights(name: str, given: tuple[Array, Array | None] | None) -> LayerWeights | None:
    """As the engine gives them: prepared when they are asked for."""
    if given is None:
        return None
    weight, bias = given

    def prepared(plan: Plan) -> Prepared:
        return backend(name).prepare(plan, weight, bias)

    return LayerWeights(weight, bias, prepared)


def run(name: str, stack: Stack, given: Operands, algorithm: Algorithm = "direct") -> Array:
    """The stack's output on that back end."""
    plan = plan_of(name, stack, algorithm=algorithm)
    return backend(name).run_stack(plan, _all(name, given), given.x).output


def gradients(name: str, stack: Stack, given: Operands, wanted: Wanted = EVERYTHING) -> dict[str, Array]:
    """Its gradients."""
    plan = plan_of(name, stack, wanted)
    return backend(name).stack_gradients(plan, _all(name, given), given.x, given.g).outputs


def _all(name: str, given: Operands) -> list[LayerWeights | None]:
    return [layer_weights(name, each) for each in given.weights]


def operands(stack: Stack, seed: int, draw: Any = None) -> Operands:  # noqa: ANN401 - a Draw or None
    """Normal numbers, weights so that sums are of size 1; or what `draw` makes."""
    steps, rng = stack.steps, np.random.default_rng(seed)
    weights: list[tuple[Array, Array | None] | None] = []
    for i, step in enumerate(steps):
        if not isinstance(step, Geometry):
            weights.append(None)
            continue
        _, w, bias = arrays(step.operation, seed + i, draw)
        if draw is None and not TABLE[stack.input.dtype].exact:
            w = (w * w.dtype.type(step.sum_length**-0.5)).astype(w.dtype)
        weights.append((w, bias))
    x, g = ((draw or usual)(rng, *header) for header in (stack.input, steps[-1].output))
    x.flags.writeable = g.flags.writeable = False
    return Operands(x, weights, g)


def assert_same(y: Array, expected: Array, name: str = "") -> None:
    """Equal, with NaN where there is NaN (which ml_dtypes' own do not say)."""
    assert y.dtype == expected.dtype, name
    np.testing.assert_array_equal(y.astype(np.complex128), expected.astype(np.complex128), name)


def one_by_one(name: str, stack: Stack, given: Operands) -> list[Array]:
    """The input, and what each layer makes of the one before it, by calls of the back end for each."""
    made, plan = [given.x], plan_of(name, stack)
    for layer, weight in zip(plan.layers, given.weights, strict=True):
        if isinstance(layer, PoolingPlan):
            made.append(test_pooling.pooled(name.partition(":")[0], layer.pooling, made[-1]))
        elif weight:
            chosen = backend(name)
            made.append(chosen.run(layer, chosen.prepare(layer, *weight), made[-1]).output)
    return made


def gradients_one_by_one(name: str, stack: Stack, given: Operands) -> dict[str, Array]:
    """All gradients, by calls of the back end for each layer."""
    inputs, grads = one_by_one(name, stack, given), dict[str, Array]()
    real = TABLE[stack.input.dtype].kind == "float"
    g = np.ascontiguousarray(given.g.real) if real else given.g
    for i, step in reversed(list(enumerate(stack.steps))):
        weight = given.weights[i]
        if not isinstance(step, Geometry):
            g = test_pooling.gradient(name.partition(":")[0], step, inputs[i], g)
        elif weight:
            op = replace(step.operation, activation="none", output_dtype=step.operation.accumulator.name)
            back = _before_activation(name, step.operation, op, inputs[i], weight, g)
            found = gradient_runs.gradients(name, op, inputs[i], weight[0], back)
            g = found.pop("grad_input")
            grads.update({f"layers[{i}].{each}": grad for each, grad in found.items()})
    return {"grad_input": g, **grads}


def _before_activation(
    name: str, op: Operation, linear: Operation, x: Array, weight: tuple[Array, Array | None], g: Array
) -> Array:
    """The gradient of the sums, in the accumulator's type."""
    wide = g.astype(op.accumulator.numpy)
    if op.activation == "none":
        return wide
    chosen = backend(name)
    plan = _direct(name, linear)
    sums = chosen.run(plan, chosen.prepare(plan, *weight), x).output
    if name == "reference":
        return activation_gradient(op.activation, sums, wide)
    import torch

    from convolver.core.backends.torch import _ACTIVATIONS

    leaf = torch.from_numpy(sums).clamp(-FLAT, FLAT).requires_grad_()
    (made,) = torch.autograd.grad(_ACTIVATIONS[op.activation](leaf), leaf, torch.from_numpy(wide))
    result: Array = made.numpy()
    return result


def _direct(name: str, op: Operation) -> Plan:
    execution = Execution(backend=name, algorithm="direct")
    [layer] = choose_stack([Geometry.of(op)], execution, [backend(name).capability]).layers
    assert isinstance(layer, Plan)
    return layer


@st.composite
def stacks(draw: st.DrawFn, dtype: DTypeName = "float32") -> Stack:
    """Stacks that are in order: up to four small layers, of any rank, layout and kind."""
    ndim, last = draw(st.integers(1, 3)), draw(st.booleans())
    size = draw(st.lists(st.integers(2, (12, 7, 4)[ndim - 1]), min_size=ndim, max_size=ndim))
    channels, items = draw(st.integers(1, 4)), draw(st.sampled_from([(), (1,), (2,)]))
    inner = (*size, channels) if last else (channels, *size)
    stack = Stack(Tensor(dtype, (*items, *inner)), ())
    for _ in range(draw(st.integers(1, 4))):
        layer = draw(_poolings(ndim, dtype) | _convolutions(ndim, _channels(stack, ndim, last=last), dtype, last=last))
        stack = _extended(stack, layer)
    assume(any(isinstance(layer, ConvolutionLayer) for layer in stack.layers))
    wide = draw(st.sampled_from([None, None, WIDEST[TABLE[dtype].kind]]))
    return stack._replace(output_dtype=wide)


def _channels(stack: Stack, ndim: int, *, last: bool) -> int:
    shape = stack.steps[-1].output.shape if stack.layers else stack.input.shape
    return shape[-1] if last else shape[-ndim - 1]


def _extended(stack: Stack, layer: Layer) -> Stack:
    """With the layer, where that is in order and small."""
    longer = stack._replace(layers=(*stack.layers, layer))
    try:
        large = np.prod(longer.steps[-1].output.shape) > LARGEST_TENSOR
    except InvalidConvolution:
        return stack
    return stack if large else longer


@st.composite
def _poolings(draw: st.DrawFn, ndim: int, dtype: DTypeName) -> Layer:
    row = TABLE[dtype]
    kinds: Sequence[PoolingKind] = ["max"] if row.exact else KINDS[1:] if row.kind == "complex" else KINDS
    kind = draw(st.sampled_from(kinds))
    if kind == "adaptive_average":
        return pooling(kind, output_size=draw(st.lists(st.integers(1, 3), min_size=ndim, max_size=ndim)))
    kernel = draw(st.integers(1, 3))
    words = {"stride": draw(st.none() | st.integers(1, 2)), "padding": draw(st.integers(0, kernel // 2))}
    return pooling(kind, kernel=[kernel] * ndim, **words, dilation=draw(st.integers(1, 2)) if kind == "max" else None)


@st.composite
def _convolutions(draw: st.DrawFn, ndim: int, channels: int, dtype: DTypeName, *, last: bool) -> Layer:
    groups = draw(st.sampled_from([g for g in range(1, channels + 1) if channels % g == 0]))
    outputs, row = draw(st.integers(1, 2)), TABLE[dtype]
    kernel = draw(st.lists(st.integers(1, 3), min_size=ndim, max_size=ndim))
    transposed, mode = draw(st.booleans()), draw(st.sampled_from(MODES))
    ends = (channels, outputs) if transposed else (groups * outputs, channels // groups)
    allowed = ACTIVATIONS[:1] if row.kind == "complex" else ACTIVATIONS[:2] if row.exact else ACTIVATIONS
    words: dict[str, Any] = {
        "groups": groups,
        "transposed": transposed,
        "flip": draw(st.booleans()),
        "layout": "channels_last" if last else "channels_first",
        "stride": draw(st.integers(1, 2)),
        "dilation": draw(st.integers(1, 2)),
        "padding": draw(st.sampled_from(["valid", "same"]) | st.integers(0, 2) | st.just([(1, -1)] * ndim)),
        "activation": draw(st.sampled_from(allowed)),
    }
    if not transposed:
        words |= {"padding_mode": mode, "padding_value": 1.0 if mode == "constant" else 0.0}
        words["input_dilation"] = draw(st.integers(1, 2))
    weight = (*kernel, *reversed(ends)) if last else (*ends, *kernel)
    return convolution(weight, bias=draw(st.booleans()), dtype=dtype, **words)
