"""Output sizes against torch itself, the words for padding against their definitions, MACs against counting."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.core import oracle
from tests.core.operations import Request, fits, requests

from convolver.core.dtypes import TABLE
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.operation import LARGEST, Tensor
from convolver.core.parse import parse


def geometry(size: tuple[int, ...], kernel: tuple[int, ...], **parameters: Any) -> Geometry:  # noqa: ANN401 - Parameters
    """One channel in, one out."""
    tensors = Tensor("float32", (1, 1, *size)), Tensor("float32", (1, 1, *kernel))
    return Geometry.of(parse(*tensors, None, parameters))  # type: ignore[arg-type]  # drawn values


@st.composite
def torch_calls(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """Arguments that torch has words for, a few of them wrong."""
    ndim = draw(st.integers(1, 3))
    transposed = draw(st.booleans())
    groups, inputs, outputs = (draw(st.integers(1, 3)) for _ in range(3))
    several = st.lists(st.integers(1, 4), min_size=ndim, max_size=ndim).map(tuple)
    size = draw(st.lists(st.integers(1, 12), min_size=ndim, max_size=ndim))
    kernel = draw(st.lists(st.integers(1, 5), min_size=ndim, max_size=ndim))
    channels = groups * inputs + draw(st.sampled_from([0, 0, 0, 1]))
    ends = (
        [groups * inputs, outputs] if transposed else [groups * outputs - draw(st.sampled_from([0, 0, 0, 1])), inputs]
    )
    assume(all(ends))
    items = draw(st.sampled_from([[], [1], [2]]))  # with none torch checks next to nothing
    parameters = {
        "stride": draw(several),
        "dilation": draw(several),
        "padding": draw(st.lists(st.integers(0, 6), min_size=ndim, max_size=ndim).map(tuple)),
        "groups": groups,
    }
    if transposed:
        extra = draw(st.lists(st.integers(0, 4), min_size=ndim, max_size=ndim).map(tuple))
        parameters |= {"transposed": True, "output_padding": extra}
    return (*items, channels, *size), (*ends, *kernel), parameters


def torchs_shape(input_shape: tuple[int, ...], weight_shape: tuple[int, ...], parameters: dict[str, Any]) -> Any:  # noqa: ANN401 - a shape or None
    """What torch itself makes of it, None where it refuses or nothing is left. (Its meta device computes nothing, but
    lets wrong channels and any output_padding of transposed convolutions pass.)
    """
    torch = pytest.importorskip("torch")
    call = dict(parameters)
    name = f"conv{'_transpose' if call.pop('transposed', False) else ''}{len(weight_shape) - 2}d"
    x, w = torch.zeros(input_shape), torch.zeros(weight_shape)
    try:
        shape = tuple(getattr(torch.nn.functional, name)(x, w, **call).shape)
    except RuntimeError:
        return None
    return shape if all(shape) else None


def our_shape(input_shape: tuple[int, ...], weight_shape: tuple[int, ...], parameters: dict[str, Any]) -> Any:  # noqa: ANN401 - a shape or None
    try:
        operation = parse(Tensor("float32", input_shape), Tensor("float32", weight_shape), None, parameters)  # type: ignore[arg-type]
        return Geometry.of(operation).output_shape
    except InvalidConvolution:
        return None


@settings(max_examples=1500)
@given(torch_calls())
def test_shapes_and_refusals_are_torchs_own(call: Any) -> None:  # noqa: ANN401 - as drawn
    assert our_shape(*call) == torchs_shape(*call)


ONE = {
    "size": st.integers(1, 40),
    "kernel": st.integers(1, 9),
    "stride": st.integers(1, 6),
    "dilation": st.integers(1, 4),
}


@given(**ONE, input_dilation=st.integers(1, 4))
def test_same_gives_one_output_for_each_started_stride(
    size: int, kernel: int, stride: int, dilation: int, input_dilation: int
) -> None:
    numbers = {"stride": stride, "dilation": dilation, "input_dilation": input_dilation}
    same = geometry((size,), (kernel,), padding="same", **numbers)
    lower = geometry((size,), (kernel,), padding="same_lower", **numbers)
    span = (size - 1) * input_dilation + 1
    assert same.output_size == lower.output_size == (math.ceil(span / stride),)
    (begin,), (end,) = same.operation.pad_begin, same.operation.pad_end
    assert end - begin in (0, 1)
    assert (lower.operation.pad_begin, lower.operation.pad_end) == ((end,), (begin,))
    assert begin + end == max(0, (math.ceil(span / stride) - 1) * stride + dilation * (kernel - 1) + 1 - span)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch copies there, and says so
@given(size=st.integers(1, 20), kernel=st.integers(1, 9), dilation=st.integers(1, 4))
def test_same_pads_as_torchs_own_word(size: int, kernel: int, dilation: int) -> None:
    torch = pytest.importorskip("torch")
    ramp = torch.arange(1.0, size + 1).reshape(1, 1, -1)
    weight = torch.arange(1.0, kernel + 1).reshape(1, 1, -1)
    op = geometry((size,), (kernel,), padding="same", dilation=dilation).operation
    padded = torch.nn.functional.pad(ramp, (op.pad_begin[0], op.pad_end[0]))
    ours = torch.nn.functional.conv1d(padded, weight, dilation=dilation)
    assert torch.equal(ours, torch.nn.functional.conv1d(ramp, weight, padding="same", dilation=dilation))


@given(**ONE, word=st.sampled_from(["same", "same_lower", "causal"]))
def test_transposed_words_give_size_times_stride(size: int, kernel: int, stride: int, dilation: int, word: str) -> None:
    made = geometry((size,), (kernel,), padding=word, stride=stride, dilation=dilation, transposed=True)
    assert made.output_size == (size * stride,)
    total = dilation * (kernel - 1) + 1 - stride
    halves = (total // 2, math.ceil(total / 2)) if total >= 0 else (0, total)
    expected = {"same": halves, "same_lower": halves[::-1] if total >= 0 else halves, "causal": (0, total)}[word]
    assert (*made.operation.pad_begin, *made.operation.pad_end) == expected


@given(**ONE, word=st.sampled_from(["same", "same_lower"]))
def test_transposed_same_undoes_same(size: int, kernel: int, stride: int, dilation: int, word: str) -> None:
    numbers: dict[str, Any] = {"padding": word, "stride": stride, "dilation": dilation}
    there = geometry((size,), (kernel,), **numbers)
    back = geometry(there.output_size, (kernel,), **numbers, transposed=True, output_size=size)
    ends = back.operation
    assert (ends.pad_begin, ends.pad_end) == (there.operation.pad_begin, there.operation.pad_end)
    assert back.output_size == (size,)


@given(size=st.integers(1, 40), kernel=st.integers(1, 9), dilation=st.integers(1, 4))
def test_full_is_every_overlap_and_causal_none_that_comes_later(size: int, kernel: int, dilation: int) -> None:
    reach = dilation * (kernel - 1)
    full = geometry((size,), (kernel,), padding="full", dilation=dilation)
    assert full.output_size == (size + reach,)
    causal = geometry((size,), (kernel,), padding="causal", dilation=dilation)
    assert (causal.output_size, causal.operation.pad_begin, causal.operation.pad_end) == ((size,), (reach,), (0,))


@given(**ONE, extra=st.integers(0, 5), begin=st.integers(-2, 3), end=st.integers(-2, 3))
def test_output_size_is_reached_by_output_padding(
    size: int, kernel: int, stride: int, dilation: int, extra: int, begin: int, end: int
) -> None:
    assume(extra < max(stride, dilation))
    target = (size - 1) * stride - begin - end + dilation * (kernel - 1) + 1 + extra
    assume(target >= 1)
    numbers = {"padding": [(begin, end)], "stride": stride, "dilation": dilation, "transposed": True}
    made = geometry((size,), (kernel,), output_size=target, **numbers)
    assert made.output_size == (target,)
    assert made.operation.output_padding == (extra,)
    assert made == geometry((size,), (kernel,), output_padding=extra, **numbers)


@settings(max_examples=200)
@given(requests())
def test_macs_are_the_products_that_the_loops_make(request: Request) -> None:
    """With ones everywhere, padding included, each product adds 1 to the sum of all outputs."""
    forward = {"padding_mode": "replicate", "padding_value": 0.0, "input_dilation": 1}
    whole = {"padding": 0, "output_padding": 0} if request.parameters["transposed"] else forward
    ones = request._replace(bias=None, parameters={**request.parameters, **whole, "activation": None})
    assume(fits(ones))
    op = ones.operation
    y = oracle.convolution(op, np.ones(op.input_shape, np.int64), np.ones(op.weight_shape, np.int64))
    assert Geometry.of(op).macs == int(np.sum(y))


@settings(max_examples=200)
@given(requests())
def test_the_shape_is_the_one_that_the_loops_make(request: Request) -> None:
    op = request.operation
    y = oracle.convolution(op, np.ones(op.input_shape, np.float32), np.ones(op.weight_shape, np.float32))
    made = Geometry.of(op)
    assert made.output_shape == y.shape
    assert made.output_bytes == y.size * TABLE[op.output_dtype].itemsize
    assert made.sum_length == oracle.longest_sum(op)
    bias = op.out_channels if op.has_bias else 0
    assert made.input_bytes == 4 * (math.prod(op.input_shape) + math.prod(op.weight_shape) + bias)


def test_the_largest_dimension_is_allowed_and_one_more_is_not() -> None:
    assert geometry((LARGEST - 2,), (1,), padding=1).output_size == (LARGEST,)
    with pytest.raises(InvalidConvolution, match=rf"output dimension 0 would be {LARGEST + 1}, above 2\^31-1"):
        geometry((LARGEST - 2,), (1,), padding=[(1, 2)])


def test_an_output_of_one_is_allowed_and_none_is_not() -> None:
    assert geometry((5,), (3,), dilation=2).output_size == (1,)
    with pytest.raises(InvalidConvolution, match=r"spanning 5 with dilation 2.* which is 4"):
        geometry((4,), (3,), dilation=2)


def test_an_empty_dimension_may_be_padded_by_constants_alone() -> None:
    assert geometry((0,), (3,), padding=2).output_size == (2,)
    assert geometry((0,), (3,), padding=2, padding_mode="constant", padding_value=1.0).output_size == (2,)
    with pytest.raises(InvalidConvolution, match="'reflect' has nothing to copy in dimension 0"):
        geometry((0,), (3,), padding=2, padding_mode="reflect")


def test_cropping_everything_is_refused_even_where_padding_would_follow() -> None:
    with pytest.raises(
        InvalidConvolution, match=r"padding \(-5, 9\) crops all of dimension 0 of the input, which is 5"
    ):
        geometry((5,), (2,), padding=[(-5, 9)])
