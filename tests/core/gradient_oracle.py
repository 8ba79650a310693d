"""A second opinion on every gradient: plain loops in float64 or complex128, no code of the core.

It reads an Operation's fields and nothing else, and pads as the oracle of the forward convolution does.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tests.core import oracle

from convolver.core.dtypes import TABLE
from convolver.core.operation import Operation

Array = NDArray[Any]


class Gradients(NamedTuple):
    """With respect to input, weight and bias, in the operation's layout."""

    grad_input: Array
    grad_weight: Array
    grad_bias: Array


def gradients(op: Operation, x: Array, w: Array, grad_output: Array) -> Gradients:
    """The gradients in float64 or complex128, not rounded."""
    with np.errstate(all="ignore"):  # infinities and NaN are part of the answer
        g = grad_output if op.dtype.startswith("complex") else grad_output.real
        return _gradients(op, _wide(x), _wide(w).conj(), _wide(g), op.padding_value)


def scales(op: Operation, x: Array, w: Array, grad_output: Array) -> Gradients:
    """The same sums of absolute values."""
    x, w, grad_output = (np.abs(_wide(a)) for a in (x, w, grad_output))
    return _gradients(op, x, w, grad_output, abs(op.padding_value))


def longest_sums(op: Operation) -> Gradients:
    """K of each: products in the longest sum."""
    items, _, *size = _canonical(op, np.empty(op.input_shape)).shape
    weight = _turned(op, np.empty(op.weight_shape)).shape
    kernel = weight[2:]
    per_group = weight[1] if op.transposed else weight[0] // op.groups // op.batch_groups
    outputs = [_output_size(op, d, size[d], kernel[d]) for d in range(len(kernel))]
    fed = 1 if op.transposed else _most_fed(op, size)
    places = math.prod(size if op.transposed else outputs)
    items //= op.batch_groups
    return Gradients(
        np.array(per_group * math.prod(kernel) * fed), np.array(items * places), np.array(items * math.prod(outputs))
    )


def assert_agree(op: Operation, grads: dict[str, Array], x: Array, w: Array, grad_output: Array) -> None:
    """Each of `grads`, by name, has the shape, the type and, within the tolerance, the values of that gradient."""
    sums = [each._asdict() for each in (gradients(op, x, w, grad_output), scales(op, x, w, grad_output))]
    for name, grad in grads.items():
        ref, scale = (each[name] for each in sums)
        assert grad.shape == ref.shape, name
        assert grad.dtype == TABLE[op.dtype].numpy, name
        tolerance = bound(op, int(longest_sums(op)._asdict()[name]), scale, ref)
        wide, most = _wide(grad), oracle.largest_finite(op.dtype)
        with np.errstate(invalid="ignore"):
            near = np.abs(wide - ref) <= tolerance
        too_large = ~np.isfinite(wide) & (np.abs(ref) + tolerance > most)
        wrong = ~(near & (np.abs(ref) - tolerance < 1.1 * most) | too_large)
        assert not wrong.any(), (
            f"{name}: {wrong.sum()} of {wrong.size} wrong, first {np.argwhere(wrong)[0]}: "
            f"{wide[wrong][0]}, not {ref[wrong][0]} +- {tolerance[wrong][0]}"
        )


def bound(op: Operation, longest: int, scale: Array, ref: Array) -> Array:
    """The tolerance: c (K+4) u_acc scale + 2 u_out |ref| + tiny(out), where out is the operation's own dtype."""
    wide = op.output_dtype in ("float64", "complex128")
    c = 2 if op.dtype.startswith("complex") else 1
    u_acc, u_out = 2.0 ** (-53 if wide else -24), 2.0 ** -TABLE[op.dtype].bits
    sums = c * (longest + 4) * u_acc * scale
    tolerance: Array = sums + 2 * u_out * np.abs(ref) + oracle.smallest_normal(op.dtype)
    return tolerance


def _wide(array: Array) -> Array:
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)


def _canonical(op: Operation, array: Array) -> Array:
    """An input or output as (N, C, *S)."""
    batched = array if len(op.input_shape) == len(op.stride) + 2 else array[np.newaxis]
    return np.moveaxis(batched, -1, 1) if op.layout == "channels_last" else batched


def _turned(op: Operation, w: Array) -> Array:
    """A weight as (O, C/g, *K), transposed (C, O/g, *K), as it meets the input."""
    w = np.moveaxis(w, (-1, -2), (0, 1)) if op.layout == "channels_last" else w
    return np.flip(w, tuple(range(2, w.ndim))) if op.flip else w


def _gradients(op: Operation, x: Array, w: Array, g: Array, fill: float) -> Gradients:
    """Of canonical sums; w is conjugated already."""
    x, w, g = _canonical(op, x), _turned(op, w), _canonical(op, g)
    grad_x, grad_w = _through_spread(op, x, w, g) if op.transposed else _through_correlated(op, x, w, g, fill)
    grad_w = np.flip(grad_w, tuple(range(2, w.ndim))) if op.flip else grad_w
    if op.layout == "channels_last":
        grad_x, grad_w = np.moveaxis(grad_x, 1, -1), np.moveaxis(grad_w, (0, 1), (-1, -2))
    unbatched = len(op.input_shape) == len(op.stride) + 1
    return Gradients(grad_x[0] if unbatched else grad_x, grad_w, g.sum((0, *range(2, g.ndim))))


def _through_correlated(op: Operation, x: Array, w: Array, g: Array, fill: float) -> tuple[Array, Array]:
    """Of out[n, o, p] = sum over c, k of padded[part of n, group of o, p*s + k*d] w[o, c, k]."""
    source = oracle.padded(op, x, fill)
    grad_source, grad_w = np.zeros(source.shape, g.dtype), np.zeros(w.shape, g.dtype)
    items, (outputs, inputs) = len(g), w.shape[:2]
    for o, c, k in itertools.product(range(outputs), range(inputs), np.ndindex(*w.shape[2:])):
        part, group = o // (outputs // op.batch_groups), o // (outputs // op.groups)
        starts = [i * d for i, d in zip(k, op.dilation, strict=True)]
        window = tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, g.shape[2:], op.stride, strict=True))
        met = (slice(part * items, (part + 1) * items), group * inputs + c, *window)
        grad_source[met] += w[(o, c, *k)] * g[:, o]
        grad_w[(o, c, *k)] = (g[:, o] * source[met].conj()).sum()
    return _unpadded(op, grad_source, x.shape), grad_w


def _unpadded(op: Operation, grad: Array, shape: tuple[int, ...]) -> Array:
    """Each padded position's gradient goes to the element that it had read."""
    out = np.zeros(shape, grad.dtype)
    reads = [_reads(op, d, n) for d, n in enumerate(shape[2:])]
    for q in np.ndindex(*grad.shape[2:]):
        read = [reads[d][i] for d, i in enumerate(q)]
        if None not in read:
            out[(slice(None), slice(None), *read)] += grad[(slice(None), slice(None), *q)]
    return out


def _reads(op: Operation, d: int, n: int) -> list[int | None]:
    """For each padded position the element of the input that it reads, if any."""
    step, begin, end = op.input_dilation[d], op.pad_begin[d], op.pad_end[d]
    spread = [i // step if i % step == 0 else None for i in range((n - 1) * step + 1)] if n else []
    left = spread[max(0, -begin) : len(spread) - max(0, -end)]
    sources = (oracle.source(op.padding_mode, m, len(left)) for m in range(-max(0, begin), len(left) + max(0, end)))
    return [None if m is None else left[m] for m in sources]


def _most_fed(op: Operation, size: list[int]) -> int:
    """M: the most padded positions that read one element."""
    counts = (Counter(i for i in _reads(op, d, n) if i is not None) for d, n in enumerate(size))
    return math.prod(max(count.values(), default=1) for count in counts)


def _output_size(op: Operation, d: int, n: int, kernel: int) -> int:
    span, begin, end, stride = op.dilation[d] * (kernel - 1) + 1, op.pad_begin[d], op.pad_end[d], op.stride[d]
    if op.transposed:
        return (n - 1) * stride - begin - end + span + op.output_padding[d]
    return (len(_reads(op, d, n)) - span) // stride + 1


def _through_spread(op: Operation, x: Array, w: Array, g: Array) -> tuple[Array, Array]:
    """Of out[n, o, i*s + k*d - pad_begin] += x[n, c, i] w[c, o, k], where that is inside."""
    grad_x, grad_w = np.zeros(x.shape, g.dtype), np.zeros(w.shape, g.dtype)
    inputs, outputs = len(w) // op.groups, w.shape[1]
    for i, k in itertools.product(np.ndindex(*x.shape[2:]), np.ndindex(*w.shape[2:])):
        place = [a * s + b * d - p for a, s, b, d, p in zip(i, op.stride, k, op.dilation, op.pad_begin, strict=True)]
        if not all(0 <= p < size for p, size in zip(place, g.shape[2:], strict=True)):
            continue
        for group in range(op.groups):
            seen, made = (slice(group * n, (group + 1) * n) for n in (inputs, outputs))
            landed = g[(slice(None), made, *place)]
            grad_x[(slice(None), seen, *i)] += landed @ w[(seen, slice(None), *k)].T
            grad_w[(seen, slice(None), *k)] += x[(slice(None), seen, *i)].conj().T @ landed
    return grad_x, grad_w
