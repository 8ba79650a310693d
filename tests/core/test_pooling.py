"""Pooling: both back ends against torch itself and against plain loops, forward and back; shapes, costs, refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.core.operations import Array, small_integers, usual
from tests.core.oracle import smallest_normal
from tests.core.test_memory import same_values

from convolver.core.backends import reference_pooling
from convolver.core.dtypes import TABLE
from convolver.core.operation import LARGEST, Tensor
from convolver.core.parameters import Layout
from convolver.core.pooling import Pooling, PoolingKind, parse_pooling

FLOATS = [name for name, row in TABLE.items() if row.kind == "float"]
COMPLEX = [name for name, row in TABLE.items() if row.kind == "complex"]
INTEGERS = [name for name, row in TABLE.items() if row.exact]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MEANS: tuple[PoolingKind, ...] = ("average", "adaptive_average")

needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="no torch")
each_backend = pytest.mark.parametrize("backend", ["reference", pytest.param("torch", marks=needs_torch)])
seeds = st.integers(0, 2**32 - 1)


@st.composite
def along(draw: st.DrawFn, kind: PoolingKind, most: int) -> tuple[int, ...]:
    """Input size, kernel, stride, padding, dilation; or input and output size."""
    if kind == "adaptive_average":
        return draw(st.integers(1, most)), draw(st.integers(1, most))
    kernel, stride, dilation = draw(st.integers(1, most - 2)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding, dilation = draw(st.integers(0, kernel // 2)), dilation if kind == "max" else 1
    least = dilation * (kernel - 1) + 1 - 2 * padding
    size = draw(st.integers(max(1, least), max(1, least) + most))
    assume(-padding % dilation < size)  # a window that meets nothing is refused
    return size, kernel, stride, padding, dilation


@st.composite
def poolings(draw: st.DrawFn, kinds: Sequence[PoolingKind], dtypes: Sequence[str]) -> Pooling:
    """Poolings that are in order: small, of any rank, layout and kind."""
    ndim, kind, layout = draw(st.integers(1, 3)), draw(st.sampled_from(kinds)), draw(st.sampled_from(LAYOUTS))
    size, *rest = zip(*(draw(along(kind, (10, 6, 4)[ndim - 1])) for _ in range(ndim)), strict=True)
    names = ("output_size",) if kind == "adaptive_average" else ("kernel", "stride", "padding", "dilation")
    words: Any = {"kind": kind, **dict(zip(names, rest, strict=True))}
    channels = (draw(st.integers(1, 3)),)
    inner = (*channels, *size) if layout == "channels_first" else (*size, *channels)
    tensor: Any = Tensor(draw(st.sampled_from(dtypes)), (*draw(st.sampled_from([(), (0,), (1,), (3,)])), *inner))
    return parse_pooling(tensor, words, ndim=ndim, layout=layout)


def pooled(backend: str, pooling: Pooling, x: Array) -> Array:
    if backend == "reference":
        return reference_pooling.pool(pooling, x)
    from convolver.core.backends import torch_pooling

    return from_torch(torch_pooling.pool(pooling, to_torch(x)), pooling.output_dtype)


def gradient(backend: str, pooling: Pooling, x: Array, g: Array) -> Array:
    if backend == "reference":
        return reference_pooling.pool_gradient(pooling, x, g)
    from convolver.core.backends import torch_pooling

    return from_torch(torch_pooling.pool_gradient(pooling, to_torch(x), to_torch(g)), pooling.dtype)


def to_torch(array: Array) -> Any:  # noqa: ANN401 - torch.Tensor
    torch = pytest.importorskip("torch")
    name = TABLE[array.dtype.name].name
    narrow = TABLE[name].kind == "float" and name != "float64"
    return torch.from_numpy(array.astype(np.float32) if narrow else array.copy()).to(getattr(torch, name))


def from_torch(tensor: Any, dtype: str) -> Array:  # noqa: ANN401 - torch.Tensor
    torch = pytest.importorskip("torch")
    assert tensor.dtype == getattr(torch, dtype)
    assert tensor.is_contiguous()
    wide = tensor.float() if dtype in FLOATS and dtype != "float64" else tensor
    array: Array = wide.numpy().astype(TABLE[dtype].numpy)
    return array


def canonical(pooling: Pooling, array: Array) -> Array:
    array = array if pooling.batched else array[np.newaxis]
    return array if pooling.layout == "channels_first" else np.moveaxis(array, -1, 1)


def windows(pooling: Pooling, d: int) -> list[list[int]]:
    """The elements of each window along dimension d, those outside the input left out."""
    n, o = pooling.input_size[d], pooling.output_size[d]
    if not pooling.kernel:
        return [list(range(math.floor(i * n / o), math.ceil((i + 1) * n / o))) for i in range(o)]
    k, s, p, step = pooling.kernel[d], pooling.stride[d], pooling.padding[d], pooling.dilation[d]
    return [[i * s - p + j * step for j in range(k) if 0 <= i * s - p + j * step < n] for i in range(o)]


def first_largest(values: list[Any]) -> int:
    """As torch: the first of the largest, or the last NaN."""
    nan = [i for i, v in enumerate(values) if v != v]  # noqa: PLR0124 - NaN alone differs from itself
    return nan[-1] if nan else values.index(max(values))


def by_loops(pooling: Pooling, x: Array, g: Array | None = None) -> Array:
    """The output, or with `g` the gradient, both (N, C, *S), in float64, complex128 or Python's integers."""
    exact = TABLE[pooling.dtype].exact
    wide = x.astype(object if exact else np.complex128 if x.dtype.kind == "c" else np.float64)
    g = None if g is None else g.astype(wide.dtype)
    y = np.zeros((*wide.shape[:2], *pooling.output_size), wide.dtype) if g is None else np.zeros_like(wide)
    sets = [windows(pooling, d) for d in range(pooling.ndim)]
    for n, c, *at in np.ndindex(*wide.shape[:2], *pooling.output_size):
        window = list(itertools.product(*(sets[d][i] for d, i in enumerate(at))))
        values = [wide[(n, c, *place)] for place in window]
        count = math.prod(pooling.kernel) if pooling.kernel else len(window)
        if g is None:
            y[(n, c, *at)] = values[first_largest(values)] if pooling.kind == "max" else sum(values) / count
        elif pooling.kind == "max":
            y[(n, c, *window[first_largest(values)])] += g[(n, c, *at)]
        else:
            for place in window:
                y[(n, c, *place)] += g[(n, c, *at)] / count
    return y


def by_torch(pooling: Pooling, x: Array, g: Array) -> tuple[Array, Array]:
    """Output and gradient in torch's own words, (N, C, *S)."""
    torch = pytest.importorskip("torch")
    call = getattr(torch.nn.functional, f"{pooling.kind.replace('average', 'avg')}_pool{pooling.ndim}d")
    leaf = torch.from_numpy(x.astype(np.float64, order="C")).requires_grad_()
    words: dict[str, Any] = {"kernel_size": pooling.kernel, "stride": pooling.stride, "padding": pooling.padding}
    words |= {"dilation": pooling.dilation} if pooling.kind == "max" else {}
    if call is torch.nn.functional.avg_pool3d:  # refuses windows larger than the input before it is padded
        padded = torch.nn.functional.pad(leaf, [p for p in reversed(pooling.padding) for _ in range(2)])
        call, words["padding"] = (lambda _, **words: torch.nn.functional.avg_pool3d(padded, **words)), 0
    y = call(leaf, **words) if pooling.kernel else call(leaf, pooling.output_size)
    y.backward(torch.from_numpy(g.astype(np.float64)))
    return y.detach().numpy(), leaf.grad.numpy()


def assert_near(pooling: Pooling, y: Array, ref: Array, scale: float, dtype: str) -> None:
    """The tolerance of a sum of all that one element meets, at most."""
    terms = max(math.prod(pooling.input_size), math.prod(pooling.output_size))
    u_acc = 2.0 ** (-53 if dtype in ("float64", "complex128") else -24)
    assert y.dtype == TABLE[dtype].numpy
    wide = canonical(pooling, y).astype(ref.dtype)
    assert wide.shape == ref.shape
    bound = 2 * (terms + 4) * u_acc * scale + 2 * 2.0 ** -TABLE[dtype].bits * np.abs(ref) + smallest_normal(dtype)
    assert (np.abs(wide - ref) <= bound).all()


def drawn(pooling: Pooling, seed: int, draw: Callable[..., Array] = usual) -> tuple[Array, Array]:
    """Read-only input and gradient of the output."""
    rng = np.random.default_rng(seed)
    x, g = draw(rng, pooling.dtype, pooling.input_shape), draw(rng, pooling.output_dtype, pooling.output.shape)
    x.flags.writeable = g.flags.writeable = False
    return x, g


def with_ties_and_specials(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    return rng.choice([0, 1, 1, 2, -1, np.nan, np.inf, -np.inf, -np.inf], shape).astype(TABLE[dtype].numpy)


@needs_torch
@each_backend
@settings(max_examples=150)
@given(pooling=poolings(("max",), ["float32", "float64", "float16", "bfloat16", "float8_e5m2"]), seed=seeds)
def test_maxima_and_whom_their_gradients_reach_are_torchs(backend: str, pooling: Pooling, seed: int) -> None:
    x, _ = drawn(pooling, seed, with_ties_and_specials)
    g = small_integers(np.random.default_rng(seed), pooling.dtype, pooling.output.shape)
    y, back = by_torch(pooling, canonical(pooling, x), canonical(pooling, g))
    np.testing.assert_array_equal(canonical(pooling, pooled(backend, pooling, x)).astype(np.float64), y)
    assume(np.abs(back).max(initial=0) <= 2 ** TABLE[pooling.dtype].bits)
    np.testing.assert_array_equal(canonical(pooling, gradient(backend, pooling, x, g)).astype(np.float64), back)


@needs_torch
@each_backend
@settings(max_examples=150)
@given(pooling=poolings(MEANS, ["float32", "float64"]), seed=seeds)
def test_means_and_their_gradients_are_torchs(backend: str, pooling: Pooling, seed: int) -> None:
    x, g = drawn(pooling, seed)
    y, back = by_torch(pooling, canonical(pooling, x), canonical(pooling, g))
    assert_near(pooling, pooled(backend, pooling, x), y, 6, pooling.dtype)
    assert_near(pooling, gradient(backend, pooling, x, g), back, 6, pooling.dtype)


@each_backend
@settings(max_examples=120)
@given(pooling=poolings((*MEANS, "max"), FLOATS) | poolings(MEANS, COMPLEX), seed=seeds)
def test_every_type_is_computed_in_its_accumulator_and_rounded_once(backend: str, pooling: Pooling, seed: int) -> None:
    x, g = drawn(pooling, seed)
    before = x.tobytes(), g.tobytes()
    y, back = by_loops(pooling, canonical(pooling, x)), by_loops(pooling, canonical(pooling, x), canonical(pooling, g))
    assert_near(pooling, pooled(backend, pooling, x), y, 8, pooling.dtype)
    assert_near(pooling, gradient(backend, pooling, x, g), back, 8, pooling.dtype)
    assert (x.tobytes(), g.tobytes()) == before


@settings(max_examples=150)
@given(pooling=poolings(("max",), INTEGERS), seed=seeds)
def test_maxima_of_integers_are_exact(pooling: Pooling, seed: int) -> None:
    row, rng = TABLE[pooling.dtype], np.random.default_rng(seed)
    least, most = (-(2**row.bits) if row.kind == "int" else 0), 2**row.bits - 1
    x = rng.choice(np.array([least, least + 1, most - 1, most], object), pooling.input_shape).astype(row.numpy)
    y = reference_pooling.pool(pooling, x)
    assert y.dtype == row.numpy
    np.testing.assert_array_equal(canonical(pooling, y).astype(object), by_loops(pooling, canonical(pooling, x)))


def line(length: int, dtype: Any = "float32", **words: Any) -> Pooling:  # noqa: ANN401 - as callers write them
    """One channel, one item, one dimension."""
    output_dtype = words.pop("output_dtype", None)
    return parse_pooling(Tensor(dtype, (1, 1, length)), words, ndim=1, output_dtype=output_dtype)  # type: ignore[arg-type]


def row(values: Any, dtype: str = "float32") -> Array:  # noqa: ANN401 - a list
    array: Array = np.array(values, TABLE[dtype].numpy).reshape(1, 1, -1)
    return array


@each_backend
def test_a_mean_of_narrow_floats_is_summed_in_float32(backend: str) -> None:
    y = pooled(backend, line(4, "float16", kind="average", kernel=4), row([2048, 1, 1, 6], "float16"))
    np.testing.assert_array_equal(y, row([514], "float16"))  # a float16 sum loses both ones


@each_backend
def test_a_wider_output_is_not_rounded_to_the_input_s_type(backend: str) -> None:
    wide = line(2, kind="average", kernel=2, output_dtype="float64")
    np.testing.assert_array_equal(pooled(backend, wide, row([2**30, 1])), row([2**29 + 0.5], "float64"))
    np.testing.assert_array_equal(gradient(backend, wide, row([0, 0]), row([3], "float64")), row([1.5, 1.5]))


@each_backend
def test_what_float8_cannot_hold_becomes_nan_not_448(backend: str) -> None:
    pooling = line(4, "float8_e4m3fn", kind="max", kernel=2, stride=1)
    back = gradient(backend, pooling, row([0, 1, 0, 2], pooling.dtype), row([448, 448, 448], pooling.dtype))
    np.testing.assert_array_equal(back.astype(np.float32), row([0, np.nan, 0, 448]))


@each_backend
@pytest.mark.parametrize("kind", MEANS)
def test_an_infinite_part_of_a_complex_mean_leaves_the_other_alone(backend: str, kind: PoolingKind) -> None:
    words: dict[str, Any] = {"output_size": 1} if kind == "adaptive_average" else {"kernel": 2}
    y = pooled(backend, line(2, "complex64", kind=kind, **words), row([complex(np.inf, 1), 3j], "complex64"))
    np.testing.assert_array_equal([y.real, y.imag], [row([np.inf]), row([2])])


@each_backend
def test_windows_of_almost_nothing_but_padding_take_no_time(backend: str) -> None:
    window = {"kernel": LARGEST - 1, "padding": LARGEST // 2, "stride": 1}
    x, g = row([1, 5, 3]), row([1, 2, 3, 4])
    largest, mean = line(3, kind="max", **window), line(3, kind="average", **window)
    np.testing.assert_array_equal(pooled(backend, largest, x), row([5] * 4))
    np.testing.assert_array_equal(gradient(backend, largest, x, g), row([0, 10, 0]))
    np.testing.assert_allclose(pooled(backend, mean, x), row([9 / (LARGEST - 1)] * 4), rtol=1e-6)
    np.testing.assert_allclose(gradient(backend, mean, x, g), row([10 / (LARGEST - 1)] * 3), rtol=1e-6)


@each_backend
def test_three_dimensions_of_almost_nothing_but_padding(backend: str) -> None:
    words: Any = {"kind": "average", "kernel": LARGEST - 1, "padding": LARGEST // 2}
    pooling = parse_pooling(Tensor("float64", (1, 1, 1, 1, 1)), words, ndim=3)
    y = pooled(backend, pooling, np.full((1, 1, 1, 1, 1), float(LARGEST - 1) ** 3))
    np.testing.assert_allclose(y, np.ones((1, 1, 1, 1, 1)))


@each_backend
@pytest.mark.parametrize("form", ["big-endian", "every second", "columns first", "unaligned"])
@pytest.mark.parametrize(
    "words", [{"kind": "max", "kernel": 2}, {"kind": "adaptive_average", "output_size": 3}], ids=str
)
def test_the_layout_in_memory_does_not_matter(backend: str, form: str, words: Any) -> None:  # noqa: ANN401 - as callers write them
    pooling = parse_pooling(Tensor("float32", (2, 5, 4, 3)), words, ndim=2, layout="channels_last")
    x, g = drawn(pooling, 1)
    np.testing.assert_array_equal(pooled(backend, pooling, same_values(x, form)), pooled(backend, pooling, x))
    back = gradient(backend, pooling, same_values(x, form), same_values(g, form))
    np.testing.assert_array_equal(back, gradient(backend, pooling, x, g))
    assert all(made.flags.c_contiguous and made.flags.writeable for made in (back, pooled("reference", pooling, x)))


@each_backend
def test_an_infinite_gradient_reaches_one_element_alone(backend: str) -> None:
    pooling = line(4, kind="max", kernel=2)
    with pytest.importorskip("torch").inference_mode():  # which autograd has to leave
        back = gradient(backend, pooling, row([1, 2, 4, 3]), row([np.inf, 6]))
    np.testing.assert_array_equal(back, row([0, np.inf, 6, 0]))
