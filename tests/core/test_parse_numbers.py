"""Numbers that are none, or out of bounds, wherever a parameter or a shape wants one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.core.refusals import DIGITS, HUGE, Case, assert_refused, case, described

from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.operation import LARGEST
from convolver.core.parameters import ExecutionParameters, Parameters
from convolver.core.parse import parse_execution

T = {"transposed": True}
INTEGERS = ("stride", "dilation", "input_dilation")
NO_INTEGERS: list[Any] = [True, False, 1.0, 1.5, "1", b"1", 1j, float("nan"), {}, np.float32(1), np.True_]

NUMBERS = [
    *(case(f"{f} 0", {f: 0}, f, f"{f} is 0", "at least 1") for f in (*INTEGERS, "groups", "batch_groups")),
    *(case(f"{f} negative", {f: (1, -2)}, f"{f}[1]", f"{f}[1] is -2", "at least 1") for f in INTEGERS),
    *(
        case(f"{f} 2^31", {f: 2**31}, f, f"{f} is 2147483648", "at most 2^31-1")
        for f in (*INTEGERS, "groups", "padding")
    ),
    *(case(f"{f} 2^62", {f: [2**62, 1]}, f"{f}[0]", f"{f}[0] is {2**62}", "2^31-1") for f in (*INTEGERS, "padding")),
    *(case(f"{f} 10^5000", {f: HUGE}, f, DIGITS, "at most 2^31-1") for f in (*INTEGERS, "groups", "padding")),
    *(case(f"{f} -10^5000", {f: -HUGE}, f, DIGITS, "at least") for f in (*INTEGERS, "groups", "padding")),
    *(
        case(f"{f} {value!r}", {f: value}, f, f"{f} is {value!r}", "must be an integer")
        for f in (*INTEGERS, "groups", "batch_groups")
        for value in NO_INTEGERS
    ),
    *(
        case(f"{f} of {value!r}", {f: (1, value)}, f"{f}[1]", f"{f}[1] is {value!r}", "must be an integer")
        for f in (*INTEGERS, "padding")
        for value in (None, 2.0, "2", True, [3])
    ),
    *(
        case(f"{f} of the wrong length", {f: (1, 1, 1)}, f, f"{f} has 3 entries", "2 spatial")
        for f in (*INTEGERS, "padding")
    ),
    *(case(f"{f} empty", {f: []}, f, f"{f} has 0 entries", "2 spatial") for f in (*INTEGERS, "padding")),
    case("nested stride", {"stride": [[1, 1], [1, 1]]}, "stride[0]", "[1, 1]", "must be an integer"),
    case("nested 10^5000", {"stride": [[HUGE], 1]}, "stride[0]", "must be an integer"),
    case("groups as a list", {"groups": [1]}, "groups", "[1]", "must be an integer"),
    case("float shape", {}, "input.shape[2]", "input.shape[2] is 8.0", "integer", input=(1, 3, 8.0, 8)),
    case("negative shape", {}, "input.shape[0]", "input.shape[0] is -1", "at least 0", input=(-1, 3, 8, 8)),
    case("two negative sizes", {}, "weight.shape[2]", "weight.shape[2] is -3", "at least 0", weight=(4, 3, -3, -3)),
    case("shape of 2^31", {}, "input.shape[2]", "2147483648", "2^31-1", input=(1, 3, 2**31, 8)),
    case("bool shape", {}, "input.shape[0]", "True", "integer", input=(True, 3, 8, 8)),
    case(
        "output of 2^31",
        {"padding": [(LARGEST, 2), (0, 0)]},
        "input.shape[2]",
        "output dimension 0 would be 2147483655",
    ),
    case(
        "stretched output",
        {**T, "stride": LARGEST},
        "input.shape[2]",
        f"output dimension 0 would be {7 * LARGEST + 3}",
        weight=(3, 4, 3, 3),
    ),
]


@pytest.mark.parametrize("refused", NUMBERS)
def test_what_is_no_number_in_bounds_is_refused_with_its_bound(refused: Case) -> None:
    assert_refused(refused)


FORMS = ("alone", "listed", "in a tuple", "nested", "in a mapping", "negative")
WIDE = (1, 1, LARGEST, LARGEST)
MANY = (LARGEST, LARGEST, 1, 1)
NARROW = (1, 1, 1, 1)
TOO_LARGE = [
    case("input", {}, "input.shape", f"input {WIDE} of float32", f"{4 * LARGEST**2} bytes", input=WIDE, weight=NARROW),
    case("input just so", {}, "input.shape", f"{2**63} bytes", input=(2, 1, 2**30, 2**30), weight=NARROW),
    case("input of an empty batch", {}, "input.shape", f"{4 * LARGEST**2} bytes", input=(0, *WIDE[1:]), weight=NARROW),
    case("weight", {}, "weight.shape", f"{4 * LARGEST**2} bytes", input=(1, *MANY[1:]), weight=MANY),
    case("kernel", {"padding": 2**30}, "weight.shape", f"{4 * LARGEST**2} bytes", input=NARROW, weight=WIDE),
    case("output", {"padding": 2**30 - 1}, "input.shape", f"output {WIDE} of float32", input=NARROW, weight=NARROW),
]


@pytest.mark.parametrize("refused", TOO_LARGE)
def test_a_tensor_of_2_to_the_63_bytes_is_refused_with_its_shape_and_bytes(refused: Case) -> None:
    assert_refused(refused)


def test_a_tensor_just_below_that_is_planned() -> None:
    op = described({}, input=(1, 1, 2**30, LARGEST), weight=NARROW)
    assert Geometry.of(op).output_bytes == 2**32 * LARGEST


@pytest.mark.parametrize("name", sorted({*Parameters.__annotations__} - {"timeout"}))  # which stays with the caller
@pytest.mark.parametrize("form", [HUGE, [HUGE], (HUGE, 1), [[HUGE, 1], [1, 1]], {HUGE: 1}, -HUGE], ids=FORMS)
def test_a_number_of_5000_digits_is_refused_wherever_it_stands(name: str, form: Any) -> None:  # noqa: ANN401 - wrong on purpose
    understand: Any = parse_execution if name in ExecutionParameters.__annotations__ else described
    with pytest.raises(InvalidConvolution):
        understand({name: form})
