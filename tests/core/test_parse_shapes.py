"""Shapes and types that contradict each other, or a rule."""

from __future__ import annotations

import numpy as np
import pytest
from tests.core.refusals import Case, assert_refused, case

T = {"transposed": True}

KERNELS_TOO_LARGE = [
    case("kernel beyond the input", {}, "input.shape[2]", "kernel dimension 0 is 9", "which is 8", weight=(4, 3, 9, 3)),
    case(
        "kernel beyond the padded input",
        {"padding": 2},
        "input.shape[3]",
        "is 13",
        "12 (8 with padding (2, 2))",
        weight=(4, 3, 3, 13),
    ),
    case(
        "dilated kernel",
        {"dilation": 5, "padding": [(0, 2), (1, 2)]},
        "input.shape[2]",
        "is 3 spanning 11 with dilation 5",
        "10 (8 with padding (0, 2))",
    ),
    case("cropped input", {"padding": [(0, 0), (-3, -3)]}, "input.shape[3]", "is 3", "2 (8 with padding (-3, -3))"),
    case("dilated input", {"input_dilation": (1, 2)}, "input.shape[2]", "is 9", "which is 8", weight=(4, 3, 9, 3)),
    case(
        "channels_last",
        {"layout": "channels_last"},
        "input.shape[1]",
        "is 9",
        "which is 8",
        input=(1, 8, 8, 3),
        weight=(9, 3, 3, 4),
    ),
    case("unbatched", {}, "input.shape[1]", "is 9", "which is 8", input=(3, 8, 8), weight=(4, 3, 9, 3)),
    case(
        "unbatched channels_last",
        {"layout": "channels_last"},
        "input.shape[0]",
        "is 9",
        "which is 8",
        input=(8, 8, 3),
        weight=(9, 3, 3, 4),
    ),
    case("empty input", {}, "input.shape[2]", "is 3", "which is 0 (0 with padding (0, 0))", input=(1, 3, 0, 8)),
    case("everything cropped", {"padding": -4}, "input.shape[2]", "padding (-4, -4)", "8 long"),
    case(
        "transposed, everything cropped",
        {**T, "padding": 5},
        "input.shape[2]",
        "output dimension 0 would be 0",
        "padding (5, 5)",
        weight=(3, 4, 3, 3),
    ),
    case(
        "nothing to reflect",
        {"padding": 3, "padding_mode": "reflect"},
        "input.shape[3]",
        "'reflect' has nothing to copy",
        "which is 0 long",
        input=(1, 3, 8, 0),
    ),
]

CHANNELS = [
    case(
        "too few",
        {},
        "input.shape[1]",
        "input has 3 channels",
        "weight (16, 4, 3, 3) with groups=1 expects 4",
        weight=(16, 4, 3, 3),
    ),
    case("groups", {"groups": 2}, "input.shape[1]", "input has 3 channels", "groups=2 expects 6"),
    case("transposed", T, "input.shape[1]", "has 3", "weight (4, 3, 3, 3) with groups=1 and transposed=True expects 4"),
    case(
        "channels_last",
        {"layout": "channels_last"},
        "input.shape[3]",
        "has 8",
        "expects 3",
        input=(1, 3, 8, 8),
        weight=(3, 3, 3, 4),
    ),
    case("unbatched", {}, "input.shape[0]", "has 2", "expects 3", input=(2, 8, 8)),
    case("none at all", {}, "input.shape[1]", "has 0", "expects 3", input=(1, 0, 8, 8)),
    case(
        "groups that do not divide",
        {"groups": 3},
        "groups",
        "groups is 3",
        "does not divide the 4 output",
        input=(1, 9, 8, 8),
    ),
    case(
        "transposed groups",
        {**T, "groups": 2},
        "groups",
        "groups is 2",
        "does not divide the 3 input",
        weight=(3, 4, 3, 3),
    ),
    case("more groups than channels", {"groups": 8}, "groups", "groups is 8", "the 4 output", input=(1, 24, 8, 8)),
    case("short bias", {}, "bias.shape", "bias has shape (3,)", "there are 4", bias=(3,)),
    case("square bias", {}, "bias.shape", "bias has shape (4, 1)", "there are 4", bias=(4, 1)),
    case("scalar bias", {}, "bias.shape", "bias has shape ()", "there are 4", bias=()),
    case(
        "bias of transposed groups",
        {**T, "groups": 3},
        "bias.shape",
        "(4,)",
        "there are 12",
        weight=(3, 4, 3, 3),
        bias=(4,),
    ),
    case(
        "weight without outputs", {}, "weight.shape[0]", "weight (0, 3, 3, 3) has a dimension of 0", weight=(0, 3, 3, 3)
    ),
    case("weight without inputs", {}, "weight.shape[1]", "(4, 0, 3, 3)", input=(1, 0, 8, 8), weight=(4, 0, 3, 3)),
    case("empty kernel", {}, "weight.shape[3]", "(4, 3, 3, 0)", "0", weight=(4, 3, 3, 0)),
]

RANKS = [
    case("scalar input", {}, "input.shape", "input () has 0 dimensions", "takes 4, or 3 unbatched", input=()),
    case("input of rank 2", {}, "input.shape", "input (8, 8) has 2", "takes 4, or 3", input=(8, 8)),
    case("input of rank 5", {}, "input.shape", "has 5", "takes 4, or 3", input=(1, 3, 8, 8, 8)),
    case("scalar weight", {}, "weight.shape", "weight () has 0 spatial dimensions", "1, 2 or 3", weight=()),
    case("weight of rank 2", {}, "weight.shape", "weight (4, 3) has 0 spatial", "1, 2 or 3", weight=(4, 3)),
    case(
        "four spatial dimensions",
        {},
        "weight.shape",
        "has 4 spatial",
        "1, 2 or 3",
        input=(1, 3, 8, 8, 8, 8),
        weight=(4, 3, 3, 3, 3, 3),
    ),
]

DTYPES = [
    case(
        "weight of another type",
        {},
        "weight.dtype",
        "input is float32",
        "weight is float64",
        dtypes=("float32", "float64", "float32"),
    ),
    case(
        "bias of another type",
        {},
        "bias.dtype",
        "input is int8",
        "bias is int32",
        bias=(4,),
        dtypes=("int8", "int8", "int32"),
    ),
    case("unknown", {}, "input.dtype", "'float99'", "none of bool, int8", dtypes=("float99", "float32", None)),
    case("no name", {}, "weight.dtype", "None", "none of bool, int8", dtypes=("float32", None, None)),
    case("narrower output", {"output_dtype": "float16"}, "output_dtype", "float16", "does not hold every float32"),
    case("unsigned output", {"output_dtype": "uint64"}, "output_dtype", "uint64", "every int8", dtype="int8"),
    case("signed of one width", {"output_dtype": "int16"}, "output_dtype", "int16", "every uint16", dtype="uint16"),
    case(
        "real output of complex",
        {"output_dtype": "float64"},
        "output_dtype",
        "float64",
        "every complex64",
        dtype="complex64",
    ),
    case(
        "shorter exponent", {"output_dtype": "float16"}, "output_dtype", "float16", "every bfloat16", dtype="bfloat16"
    ),
    case("unknown output", {"output_dtype": "float33"}, "output_dtype", "'float33'"),
    case("a class as output", {"output_dtype": np.float32}, "output_dtype", "numpy.float32"),
    case("a list as output", {"output_dtype": ["float32"]}, "output_dtype", "['float32']"),
]


@pytest.mark.parametrize("refused", KERNELS_TOO_LARGE)
def test_a_kernel_that_does_not_fit_is_refused_with_both_sizes(refused: Case) -> None:
    assert_refused(refused)


@pytest.mark.parametrize("refused", CHANNELS)
def test_channels_that_do_not_match_are_refused_with_both_counts(refused: Case) -> None:
    assert_refused(refused)


@pytest.mark.parametrize("refused", RANKS)
def test_wrong_ranks_are_refused_with_the_right_one(refused: Case) -> None:
    assert_refused(refused)


@pytest.mark.parametrize("refused", DTYPES)
def test_types_that_do_not_go_together_are_refused_by_name(refused: Case) -> None:
    assert_refused(refused)
