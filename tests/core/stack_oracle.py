"""A second opinion on stacks: torch's autograd in double precision, and how far an answer may be from it.

Convolutions are composed here of indices and torch's plain ones, poolings of indices alone, with no code of the core.
An error of one layer is pushed through the layers after it by |w|, and back the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from tests.core import gradient_oracle, oracle
from tests.core.operations import Array
from tests.core.stack_runs import Operands
from tests.core.test_pooling import canonical, windows

from convolver.core.dtypes import TABLE
from convolver.core.operation import Operation
from convolver.core.pooling import Pooling
from convolver.core.stack import Step

Tensor = torch.Tensor

STEEPEST, MOST_BENT = 1.13, 1.2
"""Bounds of the activations' first derivatives, and of their second ones beside kinks."""

KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "leaky_relu": (0.0,), "hardswish": (-3.0, 3.0)}
FLAT = {"relu": lambda s: s < 0, "relu6": lambda s: (s < 0) | (s > 6), "hardswish": lambda s: s < -3}

ACTIVATIONS: dict[str, Any] = {
    "none": lambda x: x,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softplus": lambda x: F.softplus(x, threshold=500),
}


class Layer(NamedTuple):
    """What autograd knows of one: its input, for a convolution its weight, bias and sums, and its output."""

    x: Tensor
    w: Tensor | None
    bias: Tensor | None
    sums: Tensor | None
    y: Tensor


def layers(steps: Sequence[Step], given: Operands) -> list[Layer]:
    """The stack run forward."""
    made: list[Layer] = []
    y = _wide(given.x)
    for step, weight in zip(steps, given.weights, strict=True):
        x = y
        if isinstance(step, Pooling):
            made.append(Layer(x, None, None, None, y := _pooled(step, x)))
        elif weight:
            op = step.operation
            w, bias = _wide(weight[0]), torch.zeros(step.out_channels).to(x.dtype).requires_grad_()
            bias = bias if weight[1] is None else _wide(weight[1])
            sums = _convolved(op, x, w, bias)
            y = _activation(op.activation)(sums)
            made.append(Layer(x, w, bias, sums, y))
    return made


def _activation(name: str) -> Any:  # noqa: ANN401 - of a tensor
    return ACTIVATIONS[name] if name in ACTIVATIONS else getattr(F, name)


def numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().resolve_conj().numpy()
    return array


def _wide(array: Array) -> Tensor:
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return torch.from_numpy(wide).requires_grad_()


def _taken(x: Tensor, d: int, positions: Sequence[int | None], fill: float = 0.0) -> Tensor:
    """Along spatial dimension d the elements at these positions, None for `fill`."""
    n = x.shape[2 + d]
    beside = torch.full_like(x.narrow(2 + d, 0, 1), fill)
    index = [n if p is None or not 0 <= p < n else p for p in positions]
    return torch.cat((x, beside), 2 + d).index_select(2 + d, torch.tensor(index))


def _canonical(step: Operation | Pooling, x: Tensor) -> Tensor:
    x = x if step.batched else x[None]
    return x.movedim(-1, 1) if step.layout == "channels_last" else x


def _in_layout(step: Operation | Pooling, y: Tensor) -> Tensor:
    y = y.movedim(1, -1) if step.layout == "channels_last" else y
    return y if step.batched else y[0]


def _convolved(op: Operation, x: Tensor, w: Tensor, bias: Tensor) -> Tensor:
    x = _canonical(op, x)
    w = w.permute(-1, -2, *range(op.ndim)) if op.layout == "channels_last" else w
    w = w.flip(tuple(range(2, w.ndim))) if op.flip else w
    y = _spread(op, x, w) if op.transposed else _correlated(op, x, w)
    return _in_layout(op, y + bias.reshape(-1, *(1,) * op.ndim))


def _correlated(op: Operation, x: Tensor, w: Tensor) -> Tensor:
    for d, step in enumerate(op.input_dilation):
        spread = [None if p % step else p // step for p in range((x.shape[2 + d] - 1) * step + 1)]
        x = _taken(x, d, spread)
    for d, (begin, end) in enumerate(zip(op.pad_begin, op.pad_end, strict=True)):
        x = x.narrow(2 + d, max(0, -begin), x.shape[2 + d] - max(0, -begin) - max(0, -end))
    for d, (begin, end) in enumerate(zip(op.pad_begin, op.pad_end, strict=True)):
        n = x.shape[2 + d]
        read = [oracle.source(op.padding_mode, p, n) for p in range(-max(begin, 0), n + max(end, 0))]
        x = _taken(x, d, read, op.padding_value if op.padding_mode == "constant" else 0.0)
    call = (F.conv1d, F.conv2d, F.conv3d)[op.ndim - 1]
    return _of_reals(lambda a, b: call(a, b, None, op.stride, 0, op.dilation, op.groups), x, w)


def _spread(op: Operation, x: Tensor, w: Tensor) -> Tensor:
    call = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[op.ndim - 1]
    y = _of_reals(lambda a, b: call(a, b, None, op.stride, 0, 0, op.groups, op.dilation), x, w)
    for d, (begin, end) in enumerate(zip(op.pad_begin, op.pad_end, strict=True)):
        y = _taken(y, d, range(begin, y.shape[2 + d] - end + op.output_padding[d]))
    return y


def _of_reals(call: Any, x: Tensor, w: Tensor) -> Tensor:  # noqa: ANN401 - of two tensors
    x, w = x.contiguous(), w.contiguous()  # torch 2.13's transposed ones refuse to go back through others
    if not x.is_complex():
        made: Tensor = call(x, w)
        return made
    real = call(x.real, w.real) - call(x.imag, w.imag)
    return torch.complex(real, call(x.real, w.imag) + call(x.imag, w.real))


def _pooled(pooling: Pooling, x: Tensor) -> Tensor:
    """One window after the other."""
    x, sets = _canonical(pooling, x), [windows(pooling, d) for d in range(pooling.ndim)]
    outputs = []
    for at in np.ndindex(*pooling.output_size):
        window = x
        for d, i in enumerate(at):
            window = window.index_select(2 + d, torch.tensor(sets[d][i]))
        flat = window.flatten(2)
        if pooling.kind == "max":
            outputs.append(flat.gather(2, torch.from_numpy(numpy(flat).argmax(2, keepdims=True)))[..., 0])
        else:
            outputs.append(flat.sum(2) / (prod(pooling.kernel) if pooling.kernel else flat.shape[2]))
    return _in_layout(pooling, torch.stack(outputs, 2).reshape(*x.shape[:2], *pooling.output_size))


class Errors(NamedTuple):
    """How far a layer's input, sums and output may be from autograd's. `sure` is whether each of its elements is as
    near enough to no kink, and each maximum far enough from the next one, that its slope is known.
    """

    x: Array
    sums: Array
    y: Array
    sure: bool


def forward_errors(steps: Sequence[Step], given: Operands, made: Sequence[Layer]) -> list[Errors]:
    """The tolerance of each layer's output: its own rounding, and the input's error through |w|."""
    found: list[Errors] = []
    for step, layer, weight in zip(steps, made, given.weights, strict=True):
        error = found[-1].y if found else np.zeros(given.x.shape)
        if isinstance(step, Pooling):
            found.append(_pooled_errors(step, layer, error))
        elif weight:
            found.append(_convolved_errors(step.operation, layer, weight, error))
    return found


def _convolved_errors(op: Operation, layer: Layer, weight: tuple[Array, Array | None], error: Array) -> Errors:
    assert layer.sums is not None
    s, y = numpy(layer.sums), numpy(layer.y)
    scales = oracle.scale(op, np.abs(numpy(layer.x)) + error, *weight)
    pushed = oracle.scale(replace(op, padding_value=0.0), error, weight[0])
    of_sums = oracle.bound(replace(op, activation="none"), scales, s) + pushed
    of_output = 1.01 * (oracle.bound(op, scales, y) + STEEPEST * pushed)
    near = [np.abs(s - kink) <= of_sums for kink in KINKS.get(op.activation, ())]
    sure = not any((each & (scales > 0)).any() for each in near)
    if sure and op.activation in FLAT:
        of_output = np.where(FLAT[op.activation](s), 0, of_output)
    return Errors(error, of_sums, of_output, sure)


def _pooled_errors(step: Pooling, layer: Layer, error: Array) -> Errors:
    x, wide = canonical(step, numpy(layer.x)), canonical(step, error)
    sets, sure = [windows(step, d) for d in range(step.ndim)], True
    out = np.zeros((*x.shape[:2], *step.output_size))
    for n, c, *at in np.ndindex(*out.shape):
        window = (n, c, *np.ix_(*(sets[d][i] for d, i in enumerate(at))))
        values, errors = x[window].reshape(-1), wide[window].reshape(-1)
        out[(n, c, *at)] = errors.max() + (values.size + 4) * _unit(step.output_dtype) * np.abs(values).sum()
        if step.kind == "max":
            first = values.argmax()
            doubt = np.delete(errors, first) + errors[first]
            sure &= not ((values[first] - np.delete(values, first) <= doubt) & (doubt > 0)).any()
    y = np.abs(canonical(step, numpy(layer.y)))
    out += 2 * 2.0 ** -TABLE[step.output_dtype].bits * y + oracle.smallest_normal(step.output_dtype)
    return Errors(error, error, numpy(_in_layout(step, torch.from_numpy(out))), sure)


def _unit(dtype: str) -> float:
    return 2.0 ** (-53 if dtype in ("float64", "complex128") else -24)


class Backward(NamedTuple):
    """A gradient and how far an answer may be from it."""

    ref: Array
    error: Array


def gradients(steps: Sequence[Step], given: Operands, made: list[Layer], errors: list[Errors]) -> dict[str, Backward]:
    """All gradients by autograd, in double precision; for stacks whose slopes are known."""
    g, found, error = torch.from_numpy(given.g.astype(numpy(made[-1].y).dtype)), dict[str, Backward](), 0 * abs(given.g)
    for i in reversed(range(len(steps))):
        step, layer, before = steps[i], made[i], errors[i]
        if isinstance(step, Pooling):
            [back] = torch.autograd.grad(layer.y, layer.x, g, retain_graph=True)
            both = error + (step.work + 4) * _unit(step.dtype) * np.abs(numpy(g))
            [pushed] = torch.autograd.grad(layer.y, layer.x, torch.from_numpy(both).to(g.dtype), retain_graph=True)
            g, error = back, np.abs(numpy(pushed))
            continue
        grads = _through(step.operation, layer, before, g, error)
        g, error = torch.from_numpy(grads["grad_input"].ref), grads.pop("grad_input").error
        found.update({f"layers[{i}].{name}": grad for name, grad in grads.items()})
    return {"grad_input": Backward(numpy(g), error), **found}


def _through(op: Operation, layer: Layer, before: Errors, g: Tensor, error: Array) -> dict[str, Backward]:
    """Back through the activation and the sums of a convolution: local errors, and what is pushed through |x| and
    |w|.
    """
    assert layer.sums is not None
    assert layer.w is not None
    leaves: Any = [layer.sums, layer.x, layer.w, layer.bias]
    of_sums, *back = torch.autograd.grad(layer.y, leaves, g, retain_graph=True)
    bent = (MOST_BENT * before.sums + 16 * _unit(op.dtype)) * (np.abs(numpy(g)) + error)
    error = error if op.activation == "none" else STEEPEST * error + bent
    x, w, s = (np.abs(numpy(each)) for each in (layer.x, layer.w, of_sums))
    plain = replace(op, padding_value=0.0, activation="none")
    scales = gradient_oracle.scales(op, x + before.x, w, s + error)._asdict()
    pushed = gradient_oracle.scales(op, x + before.x, w, error)._asdict()
    by_input = gradient_oracle.scales(plain, before.x, w, s)._asdict()
    longest, found = gradient_oracle.longest_sums(op)._asdict(), dict[str, Backward]()
    for name, ref in zip(scales, map(numpy, back), strict=True):
        local = gradient_oracle.bound(op, int(longest[name]), scales[name], ref)
        found[name] = Backward(ref, local + pushed[name] + by_input[name] * (name == "grad_weight"))
    return found
