"""What hypothesis draws: requests of every kind that the core has, with their arrays, and what runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray

from convolver.core.backends import Backend, available
from convolver.core.choose import choose
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Operation, Tensor
from convolver.core.parameters import Activation, PaddingMode
from convolver.core.parse import parse
from convolver.core.request_codec import steps_from_proto
from convolver.v1 import convolution_pb2

Array = NDArray[Any]
Draw = Callable[[np.random.Generator, str, tuple[int, ...]], Array]

BACKENDS = [
    pytest.param("reference", id="reference"),
    pytest.param("torch:cpu", id="torch", marks=pytest.mark.skipif(not find_spec("torch"), reason="no torch")),
]

MODES: Sequence[PaddingMode] = ("zeros", "constant", "reflect", "symmetric", "replicate", "circular")
WIDEST: dict[str, DTypeName | None] = {
    "bool": "int16", "int": "int64", "uint": "uint64", "float": "float64", "complex": "complex128",
}  # fmt: skip
ACTIVATIONS: Sequence[Activation] = get_args(Activation)


def operation_from_proto(message: convolution_pb2.Convolution) -> Operation:
    """That of a request for one convolution."""
    [geometry] = steps_from_proto(message)
    assert isinstance(geometry, Geometry)
    return geometry.operation


class Request(NamedTuple):
    """What a caller says: headers and parameters."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    parameters: Any  # Parameters, drawn

    @property
    def operation(self) -> Operation:
        return parse(*self)


def operation(
    input: tuple[int, ...],
    weight: tuple[int, ...],
    dtype: DTypeName = "float32",
    **parameters: Any,  # noqa: ANN401 - as callers write them
) -> Operation:
    """Without bias."""
    return parse(Tensor(dtype, input), Tensor(dtype, weight), None, parameters)  # type: ignore[arg-type]  # of any kind


@cache
def backend(name: str) -> Backend:
    """The back end of that name, on one thread: for what is so small, more only wait for one another."""
    return available(name, 1)[0]


def run(op: Operation, x: Array, w: Array, bias: Array | None = None, name: str = "reference") -> Array:
    """The output of this operation by direct sums on that back end."""
    chosen = backend(name)
    plan = choose(Geometry.of(op), Execution(backend=name, algorithm="direct"), [chosen.capability])
    return chosen.run(plan, chosen.prepare(plan, w, bias), x).output


def arrays(op: Operation, seed: int, draw: Draw | None = None) -> tuple[Array, Array, Array | None]:
    """Read-only input, weight and bias: normal numbers rounded to the type, or small integers, or what `draw` makes."""
    rng = np.random.default_rng(seed)
    made = [(draw or usual)(rng, op.dtype, shape) for shape in (op.input_shape, op.weight_shape, (op.out_channels,))]
    for array in made:
        array.flags.writeable = False
    x, w, bias = made
    return x, w, bias if op.has_bias else None


def usual(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    row = TABLE[dtype]
    if row.exact:
        return small_integers(rng, dtype, shape)
    array: Array = rng.standard_normal(shape)
    return (array + 1j * rng.standard_normal(shape) if row.kind == "complex" else array).astype(row.numpy)


def small_integers(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Integers that every type holds: -4 to 4, 0 to 4, 0 and 1."""
    row = TABLE[dtype]
    low, high = (0, 1) if row.kind == "bool" else (0 if row.kind == "uint" else -4, 4)
    return rng.integers(low, high, shape, endpoint=True).astype(row.numpy)


def _many(draw: st.DrawFn, ndim: int, low: int, high: int) -> Any:  # noqa: ANN401 - an int or a list, as callers write it
    """One number for all dimensions, or one for each."""
    numbers = st.integers(low, high)
    return draw(numbers | st.lists(numbers, min_size=ndim, max_size=ndim))


def _paddings(ndim: int, words: Sequence[str]) -> st.SearchStrategy[Any]:
    one, two = st.integers(-2, 4), st.tuples(st.integers(-2, 5), st.integers(-2, 5))
    return st.one_of(
        st.sampled_from(words),
        st.integers(0, 3),
        st.lists(one, min_size=ndim, max_size=ndim),
        st.lists(two, min_size=ndim, max_size=ndim),
    )


@st.composite
def requests(draw: st.DrawFn, dtype: DTypeName = "float32") -> Request:
    """Requests that are in order: small, of any rank, direction, layout and padding."""
    ndim, transposed = draw(st.integers(1, 3)), draw(st.booleans())
    groups, per_group, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    batch = draw(st.sampled_from([None, 0, 1, 2, 2, 4]))
    batch_groups = 2 if batch in (2, 4) and not transposed and groups == 1 and draw(st.booleans()) else 1
    kernel = draw(st.lists(st.integers(1, 3 if ndim == 3 else 4), min_size=ndim, max_size=ndim))
    size = draw(st.lists(st.integers(1, 5 if ndim == 3 else 9), min_size=ndim, max_size=ndim))
    parameters: dict[str, Any] = {
        "stride": _many(draw, ndim, 1, 3),
        "dilation": _many(draw, ndim, 1, 3 if ndim < 3 else 2),
        "groups": groups,
        "flip": draw(st.booleans()),
        "layout": draw(st.sampled_from(["channels_first", "channels_last"])),
        "transposed": transposed,
        **(_transposed_alone(draw, ndim) if transposed else _forward_alone(draw, ndim, dtype)),
        "batch_groups": batch_groups,
        "activation": draw(_activations(dtype)),
        "output_dtype": draw(st.sampled_from([None, None, WIDEST[TABLE[dtype].kind]])),
    }
    first, second = groups * outputs * batch_groups, per_group
    shapes = _shapes(
        parameters,
        batch,
        groups * per_group,
        size,
        [groups * per_group, outputs] if transposed else [first, second],
        kernel,
    )
    bias = Tensor(dtype, (first,)) if draw(st.booleans()) else None
    request = Request(Tensor(dtype, shapes[0]), Tensor(dtype, shapes[1]), bias, parameters)
    assume(fits(request))
    return request


def _shapes(
    parameters: dict[str, Any], batch: int | None, channels: int, size: list[int], ends: list[int], kernel: list[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    items = [] if batch is None else [batch]
    if parameters["layout"] == "channels_first":
        return (*items, channels, *size), (*ends, *kernel)
    return (*items, *size, channels), (*kernel, *reversed(ends))


def fits(request: Request) -> bool:
    """What the tests of parsing and geometry are about is left out here."""
    try:
        Geometry.of(request.operation)
    except InvalidConvolution:
        return False
    return True


def _forward_alone(draw: st.DrawFn, ndim: int, dtype: DTypeName) -> dict[str, Any]:
    mode = draw(st.sampled_from(MODES))
    return {
        "padding": draw(_paddings(ndim, ("valid", "same", "same_lower", "full", "causal"))),
        "padding_mode": mode,
        "padding_value": draw(st.sampled_from([1.0] if TABLE[dtype].kind == "bool" else [1.0, 3.0]))
        if mode == "constant"
        else 0.0,
        "input_dilation": _many(draw, ndim, 1, 3 if ndim < 3 else 2),
    }


def _transposed_alone(draw: st.DrawFn, ndim: int) -> dict[str, Any]:
    padding = draw(_paddings(ndim, ("valid", "same", "same_lower", "causal")))
    numbers = padding == "valid" or not isinstance(padding, str)
    return {"padding": padding, "output_padding": _many(draw, ndim, 0, 2) if numbers and draw(st.booleans()) else 0}


def _activations(dtype: DTypeName) -> st.SearchStrategy[Activation | None]:
    row = TABLE[dtype]
    if row.kind == "complex":
        return st.none()
    words = ACTIVATIONS[:2] if row.exact else ACTIVATIONS
    return st.none() | st.sampled_from(words)
