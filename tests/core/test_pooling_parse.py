"""What a pooling's words become: shapes and refusals as torch's, fields and numbers of refusals, costs."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.test_pooling import MEANS, drawn, poolings, windows

from convolver.core.backends import reference_pooling
from convolver.core.dtypes import TABLE
from convolver.core.errors import InvalidConvolution
from convolver.core.operation import LARGEST, Tensor
from convolver.core.pooling import Pooling, parse_pooling
from convolver.core.pooling_memory import gradient_workspace_bytes, workspace_bytes

IMAGE = (2, 3, 8, 6)
ADAPTIVE = {"kind": "adaptive_average", "output_size": 2}


def parsed(words: Any, shape: Any = IMAGE, dtype: Any = "float32", ndim: int = 2, **more: Any) -> Pooling:  # noqa: ANN401 - as callers write them
    return parse_pooling(Tensor(dtype, shape), words, ndim=ndim, **more)


@st.composite
def torch_calls(draw: st.DrawFn) -> tuple[tuple[int, ...], dict[str, Any]]:
    """An input's shape and words for it, many of them wrong."""
    ndim, kind = draw(st.integers(1, 3)), draw(st.sampled_from(["max", *MEANS]))

    def many(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=ndim, max_size=ndim)))

    shape = (*draw(st.sampled_from([(1,), (2,)])), 2, *many(1, 9))
    if kind == "adaptive_average":
        return shape, {"kind": kind, "output_size": many(1, 12)}
    words = {"kind": kind, "kernel": many(1, 5), "stride": many(1, 4), "padding": many(0, 3)}
    return shape, words | ({"dilation": many(1, 4)} if kind == "max" else {})


def torchs_shape(shape: tuple[int, ...], words: dict[str, Any]) -> Any:  # noqa: ANN401 - a shape, or None where torch refuses
    torch = pytest.importorskip("torch")
    call = dict(words)
    kind, ndim = call.pop("kind"), len(shape) - 2
    if ndim == 3 and kind == "average":  # torch's own refuses windows larger than the input before it is padded
        shape, call["padding"] = (*shape[:2], *_padded(shape[2:], call["kernel"], call["padding"])), 0
    arguments = [call.pop("output_size", None) or call.pop("kernel")]
    try:
        made = getattr(torch.nn.functional, f"{kind.replace('average', 'avg')}_pool{ndim}d")(
            torch.zeros(shape), *arguments, **call
        )
    except RuntimeError:
        return None
    return tuple(made.shape)


def _padded(size: tuple[int, ...], kernel: tuple[int, ...], padding: tuple[int, ...]) -> list[int]:
    """Of no size where the padding is too large, so that torch refuses."""
    return [0 if p > k // 2 else n + 2 * p for n, k, p in zip(size, kernel, padding, strict=True)]


@settings(max_examples=500)
@given(torch_calls())
def test_shapes_and_refusals_are_torchs_own(call: Any) -> None:  # noqa: ANN401 - as drawn
    shape, words = call
    try:
        ours = parsed(words, shape, ndim=len(shape) - 2).output.shape
    except InvalidConvolution as refusal:
        if "steps over the input" in refusal.message:  # torch's gradient of it is written outside its memory
            return
        ours = None
    assert ours == torchs_shape(shape, words)


@given(poolings(("max", *MEANS), ["float32"]))
def test_shapes_are_those_that_the_windows_make(pooling: Pooling) -> None:
    every = [windows(pooling, d) for d in range(pooling.ndim)]
    assert pooling.output_size == tuple(map(len, every))
    assert all(window for along in every for window in along)
    read = math.prod(sum(map(len, along)) for along in every) * math.prod(pooling.canonical_input[:2])
    assert read <= pooling.work <= read * math.prod(pooling.input_size) ** bool(pooling.kernel)
    if not any((*pooling.padding, *(step - 1 for step in pooling.dilation))):
        assert pooling.work == read
    assert pooling.output_bytes == 4 * math.prod(pooling.output.shape)
    assert pooling.input_bytes == 4 * math.prod(pooling.input_shape)


def test_words_are_spread_and_the_stride_is_the_kernel() -> None:
    made = parsed({"kind": "max", "kernel": (3, 2), "padding": 1, "dilation": None})
    assert (made.kernel, made.stride, made.padding, made.dilation) == ((3, 2), (3, 2), (1, 1), (1, 1))
    assert (made.output_size, made.output) == ((3, 4), Tensor("float32", (2, 3, 3, 4)))
    assert (made.macs, made.batched, made.ndim) == (0, True, 2)


def test_channels_may_stand_last_and_the_batch_be_missing() -> None:
    made = parsed({**ADAPTIVE, "output_size": (5, 9)}, (8, 6, 3), layout="channels_last", output_dtype="float64")
    assert made.output == Tensor("float64", (5, 9, 3))
    assert (made.canonical_input, made.kernel) == ((1, 3, 8, 6), ())


REFUSALS: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("no kind", {"kernel": 2}, "kind", ["None", "max, average, adaptive_average"]),
    ("unknown kind", {"kind": "min", "kernel": 2}, "kind", ["'min'"]),
    ("unknown word", {"kind": "max", "kernel": 2, "ceil_mode": True}, "ceil_mode", ["'ceil_mode'", "kernel"]),
    ("no kernel", {"kind": "max"}, "kernel", ["missing", "'max'"]),
    ("kernel 0", {"kind": "max", "kernel": (2, 0)}, "kernel[1]", ["kernel[1] is 0", "at least 1"]),
    ("kernel 2^31", {"kind": "max", "kernel": 2**31}, "kernel", ["2147483648", "at most 2^31-1"]),
    ("kernel 1.5", {"kind": "max", "kernel": 1.5}, "kernel", ["1.5", "must be an integer"]),
    ("three kernels", {"kind": "max", "kernel": (2, 2, 2)}, "kernel", ["3 entries", "2 spatial"]),
    ("stride 0", {"kind": "average", "kernel": 2, "stride": (1, 0)}, "stride[1]", ["stride[1] is 0", "at least 1"]),
    ("padding -1", {"kind": "average", "kernel": 2, "padding": -1}, "padding", ["-1", "at least 0"]),
    ("pairs", {"kind": "average", "kernel": 2, "padding": [(0, 1), 1]}, "padding[0]", ["(0, 1)", "an integer"]),
    ("padding 2 of 3", {"kind": "max", "kernel": 3, "padding": 2}, "padding[0]", ["padding[0] is 2", "half", "is 3"]),
    ("dilation 0", {"kind": "max", "kernel": 2, "dilation": 0}, "dilation", ["dilation is 0", "at least 1"]),
    ("dilation 2^40", {"kind": "max", "kernel": 2, "dilation": 2**40}, "dilation", ["2^31-1"]),
    ("dilated mean", {"kind": "average", "kernel": 2, "dilation": 2}, "dilation", ["dilation is 2", "'average'"]),
    (
        "large kernel",
        {"kind": "max", "kernel": (2, 7)},
        "kernel[1]",
        ["kernel[1] is 7", "which is 6 (6 with padding 0)"],
    ),
    (
        "large dilated kernel",
        {"kind": "max", "kernel": 3, "padding": 1, "dilation": 5},
        "kernel[0]",
        ["kernel[0] is 3 spanning 11 with dilation 5", "which is 10 (8 with padding 1)"],
    ),
    (
        "a window beside the input",
        {"kind": "max", "kernel": 2, "padding": 1, "dilation": (1, 7)},
        "dilation[1]",
        ["dilation[1] is 7", "window of 2 with padding 1", "input of 6"],
    ),
    ("size of a maximum", {"kind": "max", "kernel": 2, "output_size": 3}, "output_size", ["3", "'max'"]),
    ("no output_size", {"kind": "adaptive_average"}, "output_size", ["missing", "'adaptive_average'"]),
    ("output_size 0", {**ADAPTIVE, "output_size": (1, 0)}, "output_size[1]", ["output_size[1] is 0", "at least 1"]),
    *(
        (f"adaptive {field}", {**ADAPTIVE, field: 1}, field, [f"{field} is 1", "'adaptive_average'"])
        for field in ("kernel", "stride", "padding", "dilation")
    ),
]


@pytest.mark.parametrize(("words", "field", "says"), [pytest.param(*rest, id=name) for name, *rest in REFUSALS])
def test_a_refusal_names_its_field_and_both_numbers(words: Any, field: str, says: list[str]) -> None:  # noqa: ANN401 - as callers write them
    assert_refused(field, says, words)


@pytest.mark.parametrize(
    ("shape", "field", "says"),
    [
        ((8, 6), "input.shape", ["has 2 dimensions", "takes 4, or 3 unbatched"]),
        ((1, 2, 3, 8, 6), "input.shape", ["has 5 dimensions"]),
        ((2, 0, 8, 6), "input.shape[1]", ["is 0", "at least 1"]),
        ((2, 3, 8, 0), "input.shape[3]", ["is 0", "at least 1"]),
        ((2, 3, 2**31, 6), "input.shape[2]", ["2147483648", "2^31-1"]),
        ((2**20, 2**20, 2**20, 2), "input.shape", ["above 2^63-1"]),
    ],
)
def test_a_shape_is_refused_by_its_own_field(shape: Any, field: str, says: list[str]) -> None:  # noqa: ANN401 - as callers write them
    assert_refused(field, says, {"kind": "max", "kernel": 1}, shape)


def test_an_output_beyond_all_memory_is_refused() -> None:
    assert_refused("output_size", ["output (2, 3, 2147483647", "2^63-1"], {**ADAPTIVE, "output_size": LARGEST})
    words = {"kind": "max", "kernel": (2, 1), "stride": 1, "padding": (1, 0)}
    assert_refused("kernel[0]", ["output dimension 0 would be 2147483648"], words, (0, 1, LARGEST, 1))


@pytest.mark.parametrize("dtype", TABLE)
@pytest.mark.parametrize("kind", ["max", *MEANS])
def test_each_kind_takes_the_types_that_it_can_mean(dtype: Any, kind: str) -> None:  # noqa: ANN401 - a type's name
    words = {"kind": kind, "output_size": 1} if kind == "adaptive_average" else {"kind": kind, "kernel": 1}
    row = TABLE[dtype]
    if row.kind == "complex" if kind == "max" else row.exact:
        assert_refused("kind", [f"kind is {kind!r}", dtype], words, dtype=dtype)
    else:
        assert parsed(words, dtype=dtype).output.dtype == dtype


def test_the_output_s_type_is_no_narrower_than_the_input_s() -> None:
    assert_refused("output_dtype", ["int8", "int16"], {"kind": "max", "kernel": 1}, dtype="int16", output_dtype="int8")
    assert_refused("input.dtype", ["'float128'"], {"kind": "max", "kernel": 1}, dtype="float128")


def assert_refused(field: str, says: list[str], words: Any, shape: Any = IMAGE, **more: Any) -> None:  # noqa: ANN401 - as callers write them
    with pytest.raises(InvalidConvolution) as caught:
        parsed(words, shape, **more)
    assert caught.value.field == field
    assert all(text in caught.value.message for text in says), caught.value.message
    assert len(caught.value.message) < 450


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((4, 8, 96, 64), {"kind": "max", "kernel": 3, "stride": 2, "padding": 1}),
        ((4, 8, 96, 64), {"kind": "max", "kernel": 60, "stride": 1}),
        ((4, 8, 96, 64), {"kind": "average", "kernel": 2, "stride": 1, "padding": 1}),
        ((2, 4, 300, 300), {"kind": "adaptive_average", "output_size": (7, 290)}),
        ((1, 1, 2000, 1), {"kind": "adaptive_average", "output_size": (1, 3000)}),
        ((1, 1, 3, 3000), {"kind": "adaptive_average", "output_size": (4000, 7)}),
        ((1, 2, 700, 600), {"kind": "max", "kernel": (2, 3), "dilation": 3}),
        ((1, 1, 900, 900), {"kind": "adaptive_average", "output_size": (899, 898)}),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_reference_keeps_its_promise_of_memory(shape: Any, words: Any, layout: Any, dtype: str) -> None:  # noqa: ANN401 - as callers write them
    size = shape if layout == "channels_first" else (shape[0], *shape[2:], shape[1])
    pooling = parsed(words, size, dtype, layout=layout)
    x, g = drawn(pooling, 0)
    forward, back = (
        peak(lambda: reference_pooling.pool(pooling, x)),
        peak(lambda: reference_pooling.pool_gradient(pooling, x, g)),
    )
    assert forward <= pooling.output_bytes + workspace_bytes(pooling, "reference")
    assert back <= pooling.input_bytes + gradient_workspace_bytes(pooling, "reference")


def peak(call: Any) -> int:  # noqa: ANN401 - a function without arguments
    """Bytes that NumPy and Python held at one time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
