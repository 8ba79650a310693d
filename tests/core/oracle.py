"""A second opinion on every convolution: plain loops in float64, complex128 or Python integers, no code of the core.

It reads an Operation's fields and nothing else. Shapes in comments: N items, C channels in, O out, G groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convolver.core.dtypes import TABLE
from convolver.core.operation import Operation

Array = NDArray[Any]


def convolution(op: Operation, x: Array, w: Array, bias: Array | None = None) -> Array:
    """The output in the operation's layout: float64, complex128, or (dtype object) Python integers for integers."""
    with np.errstate(all="ignore"):  # infinities and NaN are part of the answer
        y = _with_bias(op, _sums(op, _exact(x), _exact(w)), None if bias is None else _exact(bias))
        return _in_layout(op, activated(op.activation, y))


def scale(op: Operation, x: Array, w: Array, bias: Array | None = None) -> Array:
    """The same operation on absolute values, before the activation."""
    sums = _sums(op, np.abs(_exact(x)), np.abs(_exact(w)), abs(op.padding_value))
    return _in_layout(op, _with_bias(op, sums, None if bias is None else np.abs(_exact(bias))))


def longest_sum(op: Operation) -> int:
    """K: products in the longest sum, C/groups * prod(kernel)."""
    channels = op.input_shape[-1] if op.layout == "channels_last" else op.input_shape[-len(op.stride) - 1]
    kernel = op.weight_shape[:-2] if op.layout == "channels_last" else op.weight_shape[2:]
    return channels // op.groups * math.prod(kernel)


def bound(op: Operation, scales: Array, ref: Array) -> Array:
    """The tolerance of a direct sum: c (K+4) u_acc scale + 2 u_out |ref| + tiny(out); an activation takes 1.13 times
    that, and 4 u_out |y| more.
    """
    out = TABLE[op.output_dtype]
    wide = op.output_dtype in ("float64", "complex128")
    c = 2 if op.dtype.startswith("complex") else 1
    u_acc, u_out = 2.0 ** (-53 if wide else -24), 2.0**-out.bits
    magnitude = np.abs(ref)
    total = c * (longest_sum(op) + 4) * u_acc * scales + 2 * u_out * magnitude + smallest_normal(op.output_dtype)
    plain = op.activation == "none"
    tolerance: Array = total if plain else 1.13 * total + 4 * u_out * magnitude
    return tolerance


def smallest_normal(dtype: str) -> float:
    """2^(2-bias) of a binary format: float32's is 2^-126."""
    bits = {"complex64": "float32", "complex128": "float64"}.get(dtype, dtype)
    least = {
        "float16": -14,
        "bfloat16": -126,
        "float8_e4m3fn": -6,
        "float8_e5m2": -14,
        "float32": -126,
        "float64": -1022,
    }
    return math.ldexp(1.0, least[bits])


def largest_finite(dtype: str) -> float:
    """The largest value of a float type (of one part of a complex one)."""
    return {
        "float16": 65504.0,
        "bfloat16": (2 - 2**-7) * 2.0**127,
        "float8_e4m3fn": 448.0,
        "float8_e5m2": 57344.0,
        "float32": (2 - 2**-23) * 2.0**127,
        "complex64": (2 - 2**-23) * 2.0**127,
        "float64": (2 - 2**-52) * 2.0**1023,
        "complex128": (2 - 2**-52) * 2.0**1023,
    }[dtype]


def assert_agrees(op: Operation, y: Array, x: Array, w: Array, bias: Array | None = None) -> None:
    """`y` has the shape, the type and, within the tolerance, the values of this operation on these arrays."""
    ref = convolution(op, x, w, bias)
    assert y.shape == ref.shape
    assert y.dtype == TABLE[op.output_dtype].numpy
    tolerance = bound(op, scale(op, x, w, bias), ref)
    most = largest_finite(op.output_dtype)
    wide = y.astype(np.complex128 if np.iscomplexobj(y) else np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(wide - ref) <= tolerance
    too_large = ~np.isfinite(wide) & (np.abs(ref) + tolerance > most)
    wrong = ~(near & (np.abs(ref) - tolerance < 1.1 * most) | too_large)
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} wrong, first {np.argwhere(wrong)[0]}: "
        f"{wide[wrong][0]}, not {ref[wrong][0]} +- {tolerance[wrong][0]}"
    )


def source(mode: str, m: int, n: int) -> int | None:
    """The element of 0..n-1 that position m reads, by walking; None outside for zeros and constant."""
    if mode in ("zeros", "constant"):
        return m if 0 <= m < n else None
    while not 0 <= m < n:
        if mode == "circular":
            m += n if m < 0 else -n
        elif mode == "replicate":
            m = 0 if m < 0 else n - 1
        elif mode == "symmetric":
            m = -1 - m if m < 0 else 2 * n - 1 - m
        else:
            m = 0 if n == 1 else -m if m < 0 else 2 * (n - 1) - m
    return m


def padded(op: Operation, x: Array, fill: float | None = None) -> Array:
    """x (N, C, *S) dilated, then cropped, then padded."""
    fill = (op.padding_value if fill is None else fill) if op.padding_mode == "constant" else 0
    for step in (_dilated, _cropped, _bordered):
        for d in range(len(op.stride)):
            x = np.moveaxis(step(op, np.moveaxis(x, 2 + d, 0), d, fill), 0, 2 + d)
    return x


def _dilated(op: Operation, rows: Array, d: int, _: float) -> Array:
    gaps = [np.zeros_like(rows[0])] * (op.input_dilation[d] - 1) if len(rows) else []
    spread = [row for i, each in enumerate(rows) for row in ([*gaps, each] if i else [each])]
    return np.stack(spread) if spread else rows


def _cropped(op: Operation, rows: Array, d: int, _: float) -> Array:
    return rows[max(0, -op.pad_begin[d]) : len(rows) - max(0, -op.pad_end[d])]


def _bordered(op: Operation, rows: Array, d: int, fill: float) -> Array:
    places = range(-max(0, op.pad_begin[d]), len(rows) + max(0, op.pad_end[d]))
    read = [source(op.padding_mode, m, len(rows)) for m in places]
    outside = np.full(rows.shape[1:], int(fill) if rows.dtype == object else fill, rows.dtype)
    return np.stack([outside if i is None else rows[i] for i in read])


def _exact(array: Array) -> Array:
    kind = TABLE[array.dtype.name].kind
    if kind in ("bool", "int", "uint"):
        return np.array([int(v) for v in array.reshape(-1).tolist()], dtype=object).reshape(array.shape)
    return array.astype(np.complex128 if kind == "complex" else np.float64)


def _sums(op: Operation, x: Array, w: Array, fill: float | None = None) -> Array:
    x = x if len(x.shape) == len(op.stride) + 2 else x[np.newaxis]
    if op.layout == "channels_last":
        x, w = np.moveaxis(x, -1, 1), np.moveaxis(w, (-1, -2), (0, 1))
    if op.flip:
        w = np.flip(w, tuple(range(2, w.ndim)))
    return _spread(op, x, w) if op.transposed else _correlated(op, padded(op, x, fill), w)


def _correlated(op: Operation, x: Array, w: Array) -> Array:
    """out[n, o, p] = sum over c, k of x[part of n, group of o, p*s + k*d] w[o, c, k]."""
    items, outputs, inputs = len(x) // op.batch_groups, len(w), w.shape[1]
    spans = [d * (k - 1) + 1 for d, k in zip(op.dilation, w.shape[2:], strict=True)]
    sizes = [(p - e) // s + 1 for p, e, s in zip(x.shape[2:], spans, op.stride, strict=True)]
    y = np.zeros((items, outputs, *sizes), x.dtype)
    for o, c in itertools.product(range(outputs), range(inputs)):
        part, group = o // (outputs // op.batch_groups), o // (outputs // op.groups)
        channel = x[part * items : (part + 1) * items, group * inputs + c]
        for k in np.ndindex(*w.shape[2:]):
            starts = [i * d for i, d in zip(k, op.dilation, strict=True)]
            stops = [a + (n - 1) * s + 1 for a, n, s in zip(starts, sizes, op.stride, strict=True)]
            window = tuple(slice(a, b, s) for a, b, s in zip(starts, stops, op.stride, strict=True))
            y[:, o] += channel[(slice(None), *window)] * w[(o, c, *k)]
    return y


def _spread(op: Operation, x: Array, w: Array) -> Array:
    """Each element of x, times the kernel, is added at i*s + k*d - pad_begin, where that is inside."""
    groups, inputs, outputs = op.groups, len(w) // op.groups, w.shape[1]
    sizes = [
        (n - 1) * s - begin - end + d * (k - 1) + 1 + extra
        for n, s, begin, end, d, k, extra in zip(
            x.shape[2:], op.stride, op.pad_begin, op.pad_end, op.dilation, w.shape[2:], op.output_padding, strict=True
        )
    ]
    y = np.zeros((len(x), groups * outputs, *sizes), x.dtype)
    for i, k in itertools.product(np.ndindex(*x.shape[2:]), np.ndindex(*w.shape[2:])):
        place = [a * s + b * d - p for a, s, b, d, p in zip(i, op.stride, k, op.dilation, op.pad_begin, strict=True)]
        if not all(0 <= p < size for p, size in zip(place, sizes, strict=True)):
            continue
        for g in range(groups):
            seen = slice(g * inputs, (g + 1) * inputs)
            y[(slice(None), slice(g * outputs, (g + 1) * outputs), *place)] += (
                x[(slice(None), seen, *i)] @ w[(seen, slice(None), *k)]
            )
    return y


def _with_bias(op: Operation, y: Array, bias: Array | None) -> Array:
    return y if bias is None else y + bias.reshape(-1, *(1,) * len(op.stride))


def _in_layout(op: Operation, y: Array) -> Array:
    y = np.moveaxis(y, 1, -1) if op.layout == "channels_last" else y
    return y if len(op.input_shape) == len(op.stride) + 2 else y[0]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


ACTIVATIONS: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0),
    "relu6": lambda x: min(max(x, 0), 6),
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x * _sigmoid(x),
    "sigmoid": _sigmoid,
    "tanh": math.tanh,
    "softplus": lambda x: max(x, 0) + math.log1p(math.exp(-abs(x))),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
}


def activated(name: str, x: Array) -> Array:
    """The activation of each element, in double precision (integers stay integers)."""
    if name == "none":
        return x
    y = np.empty_like(x)
    y.reshape(-1)[:] = [ACTIVATIONS[name](v) for v in x.reshape(-1).tolist()]
    return y
