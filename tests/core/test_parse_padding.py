"""Padding, and the parameters that go with transposed or with forward convolutions alone."""

from __future__ import annotations

import numpy as np
import pytest
from tests.core.refusals import DIGITS, HUGE, KERNEL, Case, assert_refused, case

T = {"transposed": True}
CONSTANT = {"padding_mode": "constant"}
FOUR = (1, 4, 8, 8)  # channels, which KERNEL takes when it is transposed

PADDINGS = [
    case("typo", {"padding": "smae"}, "padding", "'smae'", "valid, same, same_lower, full, causal"),
    case("capitals", {"padding": "SAME"}, "padding", "'SAME'"),
    case("no word", {"padding": ""}, "padding", "''"),
    case("one pair for two dimensions", {"padding": [(1, 2)]}, "padding", "padding has 1 pairs", "2 spatial"),
    case(
        "three numbers in a pair", {"padding": [(1, 2), (1, 2, 3)]}, "padding[1]", "padding[1] has 3 entries", "has 2"
    ),
    case("one number in a pair", {"padding": [[1], [1, 2]]}, "padding[0]", "padding[0] has 1 entries", "has 2"),
    case("pair of a pair", {"padding": [(1, (2,)), (1, 2)]}, "padding[0][1]", "padding[0][1] is (2,)", "integer"),
    case("float in a pair", {"padding": [(1, 2), (1.0, 2)]}, "padding[1][0]", "padding[1][0] is 1.0", "integer"),
    case("bool in a pair", {"padding": [(1, 2), (1, True)]}, "padding[1][1]", "padding[1][1] is True", "integer"),
    case("2^31 in a pair", {"padding": [(1, 2**31), (1, 2)]}, "padding[0][1]", "2147483648", "at most 2^31-1"),
    case(
        "-2^31 in a pair", {"padding": [(-(2**31), 1), (1, 2)]}, "padding[0][0]", "-2147483648", "at least -2147483647"
    ),
    case("pair and number", {"padding": [(1, 2), 3]}, "padding[0]", "padding[0] is (1, 2)", "integer"),
    case("words for each dimension", {"padding": ["same", "same"]}, "padding[0]", "'same'", "integer"),
    case("bytes", {"padding": b"\x01\x01"}, "padding", "b'\\x01\\x01'", "integer"),
    case("pairs of bytes", {"padding": [b"ab", b"cd"]}, "padding[0]", "b'ab'", "integer"),
    case("float", {"padding": 1.0}, "padding", "padding is 1.0", "integer"),
    case("bool", {"padding": True}, "padding", "padding is True", "integer"),
    case(
        "unknown mode",
        {"padding_mode": "mirror"},
        "padding_mode",
        "'mirror'",
        "zeros, constant, reflect, symmetric, replicate, circular",
    ),
    case("value without its mode", {"padding_value": 2.0}, "padding_value", "padding_value is 2.0", "'constant'"),
    case("value that no int8 is", {**CONSTANT, "padding_value": 128}, "padding_value", "128", "int8", dtype="int8"),
    case("fraction for integers", {**CONSTANT, "padding_value": 0.5}, "padding_value", "0.5", "int32", dtype="int32"),
    case(
        "NaN for integers", {**CONSTANT, "padding_value": float("nan")}, "padding_value", "nan", "int32", dtype="int32"
    ),
    case("0.1 in float32", {**CONSTANT, "padding_value": 0.1}, "padding_value", "0.1", "float32"),
    case(
        "infinity in e4m3fn",
        {**CONSTANT, "padding_value": float("inf")},
        "padding_value",
        "inf",
        "float8_e4m3fn",
        dtype="float8_e4m3fn",
    ),
    case(
        "2^53+1, which no double is",
        {**CONSTANT, "padding_value": 2**53 + 1},
        "padding_value",
        f"{2**53 + 1}",
        dtype="int64",
    ),
    case("10^5000", {**CONSTANT, "padding_value": HUGE}, "padding_value", DIGITS),
    case("text as value", {**CONSTANT, "padding_value": "one"}, "padding_value", "'one'", "number"),
    case("list as value", {**CONSTANT, "padding_value": [1.0]}, "padding_value", "[1.0]", "number"),
    case("complex value", {**CONSTANT, "padding_value": 1j}, "padding_value", "1j", "number", dtype="complex64"),
]

TRANSPOSED = [
    case("mode", {**T, "padding_mode": "reflect"}, "padding_mode", "'reflect'", "must be 'zeros'", input=FOUR),
    case(
        "constant",
        {**T, "padding_mode": "constant"},
        "padding_mode",
        "'constant'",
        "must be 'zeros'",
        input=FOUR,
    ),
    case("input_dilation", {**T, "input_dilation": (1, 2)}, "input_dilation", "(1, 2)", "must be 1", input=FOUR),
    case("batch_groups", {**T, "batch_groups": 2}, "batch_groups", "2", "must be 1", input=FOUR),
    case("full", {**T, "padding": "full"}, "padding", "'full' has no meaning", "'valid' keeps", input=FOUR),
    case(
        "full with output_size",
        {**T, "padding": "full", "output_size": 8},
        "padding",
        "'full' has no meaning",
        input=FOUR,
    ),
    case(
        "full with output_padding",
        {**T, "padding": "full", "output_padding": 1, "stride": 2},
        "padding",
        "'full' has no meaning",
        input=FOUR,
    ),
    case(
        "output_padding of stride",
        {**T, "stride": (3, 1), "dilation": 2, "output_padding": 2},
        "output_padding[1]",
        "output_padding[1] is 2",
        "max(1, 2)",
        input=FOUR,
    ),
    case("negative output_padding", {**T, "output_padding": -1}, "output_padding", "-1", "at least 0", input=FOUR),
    case(
        "output_padding too long",
        {**T, "output_padding": (0, 0, 0)},
        "output_padding",
        "has 3 entries",
        "2 spatial",
        input=FOUR,
    ),
    case(
        "output_padding with same",
        {**T, "stride": 2, "padding": "same", "output_padding": 1},
        "output_padding",
        "(1, 1)",
        "'same'",
        input=FOUR,
    ),
    case(
        "output_padding with causal",
        {**T, "stride": 2, "padding": "causal", "output_padding": 1},
        "output_padding",
        "(1, 1)",
        "'causal'",
        input=FOUR,
    ),
    case(
        "output_size with causal",
        {**T, "stride": 2, "padding": "causal", "output_size": 16},
        "output_size",
        "(16, 16)",
        "'causal'",
        input=FOUR,
    ),
    case(
        "both",
        {**T, "stride": 2, "output_padding": (1, 0), "output_size": 17},
        "output_padding",
        "(1, 0)",
        "(17, 17)",
        "both",
        input=FOUR,
    ),
    case(
        "output_size too small",
        {**T, "stride": 2, "output_size": (17, 16)},
        "output_size[1]",
        "output_size[1] is 16",
        "17 to 18",
        input=FOUR,
    ),
    case(
        "output_size too large",
        {**T, "stride": 2, "output_size": 19},
        "output_size[0]",
        "output_size[0] is 19",
        "17 to 18",
        input=FOUR,
    ),
    case(
        "output_size that same never makes",
        {**T, "stride": 2, "padding": "same", "output_size": 17},
        "output_size",
        "output_size 17",
        "15 to 16",
        input=FOUR,
    ),
    case(
        "output_size below",
        {**T, "stride": 2, "padding": "same_lower", "output_size": 14},
        "output_size",
        "output_size 14",
        "15 to 16",
        input=FOUR,
    ),
    case("output_size 0", {**T, "output_size": 0}, "output_size", "output_size is 0", "at least 1", input=FOUR),
    case("empty input", T, "input.shape", "(1, 4, 0, 8)", "empty", input=(1, 4, 0, 8), weight=KERNEL),
    case(
        "forward output_padding",
        {"output_padding": 1},
        "output_padding",
        "output_padding is 1",
        "transposed=True alone",
    ),
    case("forward output_padding 10^5000", {"output_padding": HUGE}, "output_padding", DIGITS),
    case("forward output_padding of no length", {"output_padding": ()}, "output_padding", "has 0 entries"),
    case(
        "forward output_size", {"output_size": (6, 6)}, "output_size", "output_size is (6, 6)", "transposed=True alone"
    ),
    case("forward output_size 0", {"output_size": 0}, "output_size", "output_size is 0", "transposed=True alone"),
]

REST = [
    case(
        "batch_groups of the batch",
        {"batch_groups": 2},
        "batch_groups",
        "batch_groups is 2",
        "the 3 input's items",
        input=(3, 3, 8, 8),
    ),
    case(
        "batch_groups of the outputs",
        {"batch_groups": 3},
        "batch_groups",
        "batch_groups is 3",
        "the 4 output channels",
        input=(3, 3, 8, 8),
    ),
    case(
        "batch_groups with groups",
        {"batch_groups": 2, "groups": 2},
        "batch_groups",
        "batch_groups is 2",
        "groups=2",
        input=(2, 6, 8, 8),
    ),
    case(
        "batch_groups unbatched", {"batch_groups": 2}, "batch_groups", "batch_groups is 2", "(3, 8, 8)", input=(3, 8, 8)
    ),
    case("unknown layout", {"layout": "NHWC"}, "layout", "'NHWC'", "channels_first, channels_last"),
    case("unknown activation", {"activation": "swish"}, "activation", "'swish'", "relu, relu6"),
    case(
        "activation of integers",
        {"activation": "gelu"},
        "activation",
        "'gelu'",
        "int8 takes none or relu",
        dtype="int8",
    ),
    case(
        "activation of complex",
        {"activation": "relu"},
        "activation",
        "'relu'",
        "complex64 takes none",
        dtype="complex64",
    ),
    case("unknown overflow", {"overflow": "clip"}, "overflow", "'clip'", "error, saturate, wrap"),
    case("number as a word", {"layout": HUGE}, "layout", DIGITS),
    case("array as a word", {"overflow": np.array([1, 2])}, "overflow", "array([1, 2])"),
    case("text for a flag", {"flip": "no"}, "flip", "flip is 'no'", "True or False"),
    case("number for a flag", {"transposed": 2}, "transposed", "transposed is 2", "True or False"),
    case("misspelt parameter", {"strides": 2}, "strides", "'strides'", "no parameter"),
]


@pytest.mark.parametrize("refused", PADDINGS)
def test_padding_that_is_none_is_refused(refused: Case) -> None:
    assert_refused(refused)


@pytest.mark.parametrize("refused", TRANSPOSED)
def test_what_goes_with_the_other_direction_is_refused(refused: Case) -> None:
    assert_refused(refused)


@pytest.mark.parametrize("refused", REST)
def test_groups_of_the_batch_words_and_flags_are_checked(refused: Case) -> None:
    assert_refused(refused)
