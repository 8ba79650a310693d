"""What parsing makes of a request that is in order, and of anything at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.refusals import described

from convolver.core.dtypes import TABLE
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.operation import LARGEST, Execution
from convolver.core.parameters import ExecutionParameters, Parameters
from convolver.core.parse import parse_execution

WRONG_WORDS = {
    "precision": "exact",
    "algorithm": "winograd",
    "priority": 1,
    "backend": 3,
    "deterministic": "yes",
}


@pytest.mark.parametrize("field", WRONG_WORDS)
def test_words_for_execution_are_checked(field: str) -> None:
    value: Any = WRONG_WORDS[field]
    with pytest.raises(InvalidConvolution, match=f"{field} is {value!r}") as caught:
        parse_execution({field: value})  # type: ignore[misc]  # wrong on purpose
    assert caught.value.field == field


def test_execution_has_its_defaults() -> None:
    assert parse_execution({}) == Execution("highest", "auto", "auto", deterministic=False, priority="interactive")
    assert parse_execution({"backend": ""}).backend == "auto"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=2)
words = st.sampled_from(["same", "full", "causal", "reflect", "constant", "channels_last", "relu", "float64", "wrap"])
anything = st.recursive(
    scalars | words | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=4,
)
NAMES = sorted({*Parameters.__annotations__} - {*ExecutionParameters.__annotations__, "timeout"})


@settings(max_examples=1000)
@given(st.dictionaries(st.sampled_from(NAMES), anything, min_size=1, max_size=3), st.booleans())
def test_whatever_is_given_is_understood_or_refused_by_name(given_some: dict[str, Any], transposed: bool) -> None:  # noqa: FBT001 - drawn
    parameters = {"transposed": transposed, **given_some}
    try:
        described(parameters, weight=(3, 3, 3, 3))
    except InvalidConvolution as error:
        refused = error
    else:
        return
    assert refused.field.split("[")[0] in {*parameters, "input.shape"}
    assert refused.field.split("[")[0].split(".")[0] in refused.message or "output dimension" in refused.message


def test_none_stands_for_the_default() -> None:
    assert described(dict.fromkeys(Parameters.__annotations__)) == described({})


def test_defaults_are_torchs() -> None:
    op = described({})
    assert (op.stride, op.dilation, op.input_dilation, op.pad_begin, op.pad_end) == ((1, 1),) * 3 + ((0, 0),) * 2
    assert (op.groups, op.batch_groups, op.transposed, op.flip) == (1, 1, False, False)
    assert (op.padding_mode, op.layout, op.activation, op.overflow) == ("zeros", "channels_first", "none", "error")
    assert op.output_dtype == op.dtype == "float32"


@pytest.mark.parametrize("padding", [2, (2,), (2, 2), [(2, 2), (2, 2)], [[2, 2], [2, 2]], np.int64(2)], ids=str)
def test_every_way_of_writing_a_padding_is_understood(padding: Any) -> None:  # noqa: ANN401 - Padding and more
    op = described({"padding": padding})
    assert op.pad_begin == op.pad_end == (2, 2)


def test_pairs_are_begin_and_end_of_each_dimension() -> None:
    op = described({"padding": [(1, 2), (3, 4)]})
    assert (op.pad_begin, op.pad_end) == ((1, 3), (2, 4))
    signal = described({"padding": [(1, 2)]}, (1, 1, 8), (1, 1, 3))
    assert (signal.pad_begin, signal.pad_end) == ((1,), (2,))


def test_what_numpy_counts_with_becomes_pythons_integers() -> None:
    shape = tuple(np.array([1, 1, 2**30, LARGEST]))
    op = described({"stride": np.array([2, 3])[1], "groups": np.uint8(1)}, shape, tuple(np.array([1, 1, 3, 3])))
    assert all(type(n) is int for n in (*op.input_shape, *op.weight_shape, *op.stride, op.groups))


@pytest.mark.parametrize("truth", [True, np.True_])
def test_flags_of_numpy_are_flags(truth: Any) -> None:  # noqa: ANN401 - of either library
    assert described({"flip": truth}).flip is True


def test_an_empty_batch_is_allowed() -> None:
    assert Geometry.of(described({}, (0, 3, 8, 8))).output_shape == (0, 4, 6, 6)


LAYOUTS = {
    "channels_first": ((2, 3, 9, 8), (4, 3, 3, 2), (2, 4, 7, 7)),
    "channels_last": ((2, 9, 8, 3), (3, 2, 3, 4), (2, 7, 7, 4)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_unbatched_input_have_their_own_shapes(layout: str) -> None:
    input_shape, weight_shape, expected = LAYOUTS[layout]
    batched = described({"layout": layout}, input_shape, weight_shape)
    single = described({"layout": layout}, input_shape[1:], weight_shape)
    assert Geometry.of(batched).output_shape == expected
    assert Geometry.of(single).output_shape == expected[1:]
    assert batched.canonical_input == (2, 3, 9, 8)
    assert single.canonical_input == (1, 3, 9, 8)
    assert batched.canonical_weight == (4, 3, 3, 2)


def test_channels_last_transposed_has_its_inputs_last_in_the_weight() -> None:
    op = described({"layout": "channels_last", "transposed": True, "groups": 2}, (1, 5, 6), (3, 4, 6))
    assert op.canonical_weight == (6, 4, 3)
    assert Geometry.of(op).output_shape == (1, 7, 8)


FLOATS = {"float32", "float64", "complex64", "complex128"}
WIDER = {
    "bool": set(TABLE),
    "int8": {"int8", "int16", "int32", "int64", "float16", "bfloat16", *FLOATS},
    "uint8": set(TABLE) - {"bool", "int8", "float8_e4m3fn", "float8_e5m2"},
    "int16": {"int16", "int32", "int64", *FLOATS},
    "uint16": {"uint16", "uint32", "uint64", "int32", "int64", *FLOATS},
    "int32": {"int32", "int64", "float64", "complex128"},
    "uint32": {"uint32", "uint64", "int64", "float64", "complex128"},
    "int64": {"int64"},
    "uint64": {"uint64"},
    "float8_e4m3fn": {"float8_e4m3fn", "float16", "bfloat16", *FLOATS},
    "float8_e5m2": {"float8_e5m2", "float16", "bfloat16", *FLOATS},
    "float16": {"float16", *FLOATS},
    "bfloat16": {"bfloat16", *FLOATS},
    "float32": FLOATS,
    "float64": {"float64", "complex128"},
    "complex64": {"complex64", "complex128"},
    "complex128": {"complex128"},
}


@pytest.mark.parametrize("narrow", TABLE)
def test_the_output_may_have_each_type_that_holds_every_value_of_the_inputs(narrow: str) -> None:
    taken = set()
    for wide in TABLE:
        try:
            described({"output_dtype": wide}, dtype=narrow)
        except InvalidConvolution:
            continue
        taken.add(wide)
    assert taken == WIDER[narrow]
