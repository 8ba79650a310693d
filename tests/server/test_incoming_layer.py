"""A layer is refused before its data where no input could follow it, and nowhere else."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convolver.core.errors import InvalidConvolution, LimitExceeded
from convolver.core.operation import Tensor
from convolver.core.parse import parse
from convolver.core.request_codec import definition_to_proto
from convolver.core.stack import ConvolutionLayer
from convolver.server.incoming_layer import IncomingLayer, checked

if TYPE_CHECKING:
    from convolver.core.parameters import Parameters

small = st.integers(1, 4)
sizes = st.integers(0, 7)


@st.composite
def layers(draw: st.DrawFn) -> tuple[ConvolutionLayer, list[Tensor]]:
    """A layer with parameters that go together or not, and inputs of every kind for it."""
    ndim, transposed = draw(st.integers(1, 2)), draw(st.booleans())
    groups, batch_groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 1, 1, 2, 3]))
    first, second = draw(small) * draw(st.sampled_from([1, groups, batch_groups])), draw(small)
    last = draw(st.booleans())
    kernel = tuple(draw(st.lists(small, min_size=ndim, max_size=ndim)))
    given: dict[str, Any] = {
        "stride": draw(st.lists(small, min_size=ndim, max_size=ndim)),
        "dilation": draw(small),
        "groups": groups,
        "batch_groups": batch_groups,
        "padding": draw(st.sampled_from(["valid", "same", "same_lower", "full", "causal"]) | st.integers(-2, 3)),
        "transposed": transposed,
        "layout": "channels_last" if last else "channels_first",
        "output_size": draw(st.none() | st.lists(st.integers(-1, 20), min_size=ndim, max_size=ndim)),
        "output_padding": draw(st.sampled_from([0, 0, 0, 1, 3])),
    }
    weight = Tensor("float32", (*kernel, second, first) if last else (first, second, *kernel))
    bias = Tensor("float32", (second * groups if transposed else first,)) if draw(st.booleans()) else None
    channels, items = first if transposed else second * groups, draw(st.integers(0, 6))
    spatial = draw(st.lists(st.lists(sizes, min_size=ndim, max_size=ndim), min_size=1, max_size=4))
    shapes = [(*size, channels) if last else (channels, *size) for size in spatial]
    inputs = [Tensor("float32", shape) for shape in (*shapes, *((items, *shape) for shape in shapes))]
    return ConvolutionLayer(weight, bias, given), inputs  # type: ignore[arg-type]  # words of any kind, on purpose


def goes(input: Tensor, layer: ConvolutionLayer) -> bool:
    try:
        parse(input, *layer)
    except InvalidConvolution:
        return False
    return True


def field_of_refusal(layer: ConvolutionLayer) -> str | None:
    try:
        checked(layer)
    except InvalidConvolution as refusal:
        return refusal.field
    return None


@given(layers())
def test_a_layer_that_some_input_may_follow_is_not_refused(example: tuple[ConvolutionLayer, list[Tensor]]) -> None:
    layer, inputs = example
    if any(goes(input, layer) for input in inputs):
        assert checked(layer) is layer


@given(layers())
def test_a_layer_that_is_refused_is_refused_with_every_input(example: tuple[ConvolutionLayer, list[Tensor]]) -> None:
    layer, inputs = example
    field = field_of_refusal(layer)
    if field is not None:
        assert not field.startswith("input")
        assert not any(goes(input, layer) for input in inputs)


def layer_of(parameters: Parameters) -> ConvolutionLayer:
    return ConvolutionLayer(Tensor("float32", (4, 1, 3, 3)), None, parameters)


@pytest.mark.parametrize("padding", ["valid", "same", "same_lower", 0, 1])
def test_an_output_size_that_no_input_gives_is_refused(padding: Any) -> None:  # noqa: ANN401  # a word or a number
    inputs, fields = [Tensor("float32", (4, i, i)) for i in range(1, 9)], set[str]()
    for size in range(1, 30):
        layer = layer_of({"transposed": True, "stride": 4, "padding": padding, "output_size": (size, size)})
        field = field_of_refusal(layer)
        assert (field is None) == any(goes(input, layer) for input in inputs)
        fields.add((field or "").partition("[")[0])
    assert fields <= {"", "output_size"}


def test_groups_of_the_batch_wait_for_a_batch() -> None:
    assert field_of_refusal(layer_of({"batch_groups": 2})) is None
    assert field_of_refusal(layer_of({"batch_groups": 3})) == "batch_groups"


def test_numbers_out_of_their_bounds_are_refused_by_their_own_field() -> None:
    transposed: Parameters = {"transposed": True, "stride": (2, 2)}
    assert field_of_refusal(layer_of({"groups": 2**40})) == "groups"
    assert field_of_refusal(layer_of({"groups": 0})) == "groups"
    assert field_of_refusal(layer_of({"batch_groups": -(2**62)})) == "batch_groups"
    assert field_of_refusal(layer_of({**transposed, "output_size": (2**50, 5)})) == "output_size[0]"
    assert field_of_refusal(layer_of({**transposed, "output_size": (-5, 5)})) == "output_size[0]"


def incoming(*shape: int, bias: int = 0, most: int = 10**6) -> IncomingLayer:
    header = Tensor("float32", (bias,)) if bias else None
    definition = definition_to_proto(ConvolutionLayer(Tensor("float32", shape), header, {}))

    def check(size: int) -> None:
        if size > most:
            raise LimitExceeded("too large", value=size)

    return IncomingLayer(definition.SerializeToString(), definition, check)


def test_the_size_that_is_checked_is_that_of_all_that_is_held() -> None:
    with pytest.raises(LimitExceeded) as caught:
        incoming(2, 1, 10, bias=2, most=10)
    assert caught.value.value == 80 + 8 + len(incoming(2, 1, 10, bias=2).definition)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_layer_takes_no_more_memory_than_of_it_has_come() -> None:
    before = resident()
    layer = incoming(2**26, 1, 1, most=2**60)
    layer.take(memoryview(b"data"))
    assert resident() - before < 2**26


def test_bytes_of_the_bias_follow_those_of_the_weight() -> None:
    layer, data = incoming(2, 1, 3, bias=2), np.arange(8, dtype=np.float32)
    layer.take(memoryview(data.tobytes()))
    weight, bias = layer.arrays()
    np.testing.assert_array_equal(weight, data[:6].reshape(2, 1, 3))
    assert bias is not None
    np.testing.assert_array_equal(bias, data[6:])
