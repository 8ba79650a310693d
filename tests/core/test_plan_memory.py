"""A plan's memory is what really happens: for plans of 64 MB and more, resident memory grows by at most 1.25 times the
plan, and the plan is at most twice the growth.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple, get_args

import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from tests.core.operations import operation, requests
from tests.core.resident import THREADS, Meter, plan_of, written

from convolver.core import cost
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.errors import InvalidConvolution, Unsupported
from convolver.core.operation import Operation
from convolver.core.parameters import Algorithm, Overflow
from convolver.core.plan import Plan

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="measured through Linux's /proc"),
    pytest.mark.timeout(600),  # examples of up to a second each, which a busy machine makes minutes
]
needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="no torch")

MB = 1 << 20
EXAMPLES = 20
LEAST, MOST = 64 * MB, 400 * MB
SECONDS = 0.5
"""What an example may take, by the cost model."""

ITEM = 12
"""By what each spatial size is multiplied where there are to be many items: thousands of tiny ones take minutes."""

CODE_BYTES = 140

INTEGER_MACS_PER_SECOND = 3e8
"""NumPy's products of 64-bit integers."""


@pytest.fixture(scope="module")
def meter() -> Iterator[Meter]:
    meter = Meter()
    yield meter
    meter.close()


def check(meter: Meter, backend: str, op: Operation, algorithm: Algorithm = "direct", *, largest: bool = False) -> None:
    """That the plan is what happens, at the second time at the latest: what a library keeps once it has met a kind of
    convolution comes at the first.
    """
    plan = plan_of(backend, op, algorithm)
    assert plan.peak_bytes >= LEAST
    growth = meter.convolution(backend, plan, largest=largest)
    if growth > 1.25 * plan.peak_bytes:
        growth = meter.convolution(backend, plan, largest=largest)
    assert growth <= 1.25 * plan.peak_bytes, f"{growth / MB:.0f} MB stood where {plan.peak_bytes / MB:.0f} were planned"
    assert plan.peak_bytes <= 2 * growth, f"{plan.peak_bytes / MB:.0f} MB were planned where {growth / MB:.0f} stood"


@pytest.mark.parametrize("size", [MB, 10 * MB, 100 * MB, 300 * MB], ids=lambda size: f"{size // MB} MB")
def test_known_bytes_measure_as_many(meter: Meter, size: int) -> None:
    assert abs(meter.growth(written, size) - size) < MB


class Growth(NamedTuple):
    """What a small operation is multiplied by: each spatial size, items, channels in and out, and padding."""

    size: tuple[int, ...]
    items: int
    inputs: int
    outputs: int
    padding: int


def enlarged(op: Operation, by: Growth) -> Operation:
    """The same operation on more."""
    batch, channels, *size = op.canonical_input
    first, second, *kernel = op.canonical_weight
    size = [n * times for n, times in zip(size, by.size, strict=True)]
    ends = (first * by.inputs, second * by.outputs) if op.transposed else (first * by.outputs, second * by.inputs)
    items = (batch * by.items,) if op.batched else ()
    inputs = channels * by.inputs
    is_first = op.layout == "channels_first"
    return replace(
        op,
        input_shape=(*items, inputs, *size) if is_first else (*items, *size, inputs),
        weight_shape=(*ends, *kernel) if is_first else (*kernel, *reversed(ends)),
        pad_begin=tuple(n * by.padding if n > 0 else n for n in op.pad_begin),
        pad_end=tuple(n * by.padding if n > 0 else n for n in op.pad_end),
    )


def seconds(backend: str, plan: Plan) -> float:
    """What it takes, roughly."""
    exact = TABLE[plan.operation.dtype].exact
    summed = plan.macs / INTEGER_MACS_PER_SECOND if exact and TABLE[plan.operation.dtype].bits > 16 else 0.0
    return cost.estimate(plan.geometry, backend, THREADS, plan.algorithm).seconds * (3 if exact else 1) + summed


def writes_long_code(backend: str, plan: Plan) -> bool:
    """Where oneDNN's matrix products write code for each position of a row, up to CODE_BYTES each, when a shape comes
    for the first time, and keep it. No plan can be right for both runs: transposed, 1x1x1048576 with a kernel of 9 and
    stride 2 takes 159 MB at first and 20 MB from then on. With shorter rows, or more channels, it hardly counts.
    """
    op = plan.operation
    by_matrices = op.layout == "channels_last" or (op.transposed and max(op.stride) > 1)
    much = CODE_BYTES * plan.geometry.output_size[-1] > plan.peak_bytes / 10
    return backend.startswith("torch") and by_matrices and much


@st.composite
def operations(draw: st.DrawFn, backend: str, algorithm: Algorithm) -> Operation:
    """Operations of 64 to 400 MB that take no more than SECONDS, of any kind that the back end has: a small one with
    more items, channels and padding, and as large in some or all spatial dimensions, or in items, as it may be.
    """
    everything = (backend, algorithm) == ("reference", "direct")
    kinds = [name for name, row in TABLE.items() if everything or not row.exact]
    op = draw(requests(draw(st.sampled_from(kinds)))).operation
    assume(op.canonical_input[0])
    if TABLE[op.dtype].exact:
        op = replace(op, overflow=draw(st.sampled_from(get_args(Overflow))))
    items, padding = draw(st.sampled_from([1, 1, 1, 4])), draw(st.sampled_from([1, 1, 1, 30]))
    inputs, outputs = (draw(st.sampled_from([1, 1, 1, 2, 4, 7, 16, 64])) for _ in range(2))
    grows = draw(st.sampled_from([(True,) * op.ndim]) | st.tuples(*(st.booleans() for _ in range(op.ndim))))
    most = draw(st.integers(LEAST, MOST))

    def made(times: int) -> Operation:
        size = tuple(times if yes else 1 for yes in grows) if any(grows) else (ITEM,) * op.ndim
        return enlarged(op, Growth(size, items if any(grows) else items * times, inputs, outputs, padding))

    def too_large(times: int) -> bool:
        plan = plan_of(backend, made(times), algorithm)
        return plan.peak_bytes > most or seconds(backend, plan) > SECONDS

    assume(op.batched or any(grows))
    try:
        op = made(bisect_left(range(1, 1 << 24), x=True, key=too_large))
        plan = plan_of(backend, op, algorithm)
    except (InvalidConvolution, Unsupported):
        reject()
    assume(LEAST <= plan.peak_bytes <= MOST)
    assume(not writes_long_code(backend, plan))
    return op


@settings(max_examples=EXAMPLES)
@given(operations("reference", "direct"), st.booleans())
def test_the_references_plan_is_what_happens(meter: Meter, op: Operation, largest: bool) -> None:  # noqa: FBT001 - drawn
    check(meter, "reference", op, largest=largest)


@needs_torch
@settings(max_examples=EXAMPLES)
@given(operations("torch:cpu", "direct"))
def test_torchs_plan_is_what_happens(meter: Meter, op: Operation) -> None:
    check(meter, "torch:cpu", op)


T: dict[str, Any] = {"transposed": True}
BIASED = replace(operation((1, 4, 400, 270), (4, 64, 1, 4), groups=2, stride=(2, 1), **T), has_bias=True)
ON_TORCH = {
    "1 channel to 1": operation((1, 1, 4096, 4096), (1, 1, 3, 3)),
    "3 depthwise": operation((1, 3, 1024, 2048), (3, 1, 3, 3), groups=3),
    "4 to 4": operation((1, 4, 1024, 2048), (4, 4, 3, 3)),
    "3 to 8": operation((1, 3, 1024, 2048), (8, 3, 3, 3)),
    "channels last": operation((3, 512, 512, 16), (3, 3, 16, 16), layout="channels_last"),
    "groups of two": operation((1, 12, 1024, 1024), (6, 2, 3, 3), groups=6),
    "float64": operation((1, 2, 1024, 1024), (2, 2, 3, 3), "float64"),
    "complex64": operation((1, 1, 1024, 2048), (1, 1, 3, 3), "complex64"),
    "bfloat16, activated": operation((1, 4, 1024, 2048), (4, 4, 3, 3), "bfloat16", activation="relu"),
    "a signal": operation((1, 1, 1 << 21), (1, 1, 31)),
    "a volume of small planes": operation((1, 2, 16, 16, 4096), (2, 2, 3, 3, 3)),
    "transposed": operation((1, 4, 512, 1024), (4, 4, 3, 3), stride=2, **T),
    "transposed, 1 channel to 1": operation((1, 1, 1024, 1024), (1, 1, 3, 3), **T),
    "transposed, wide kernel": operation((1, 4, 150000), (4, 4, 31), **T),
    "transposed, grouped, with bias": BIASED,
    "transposed, cut": operation((1, 4, 1024, 1024), (4, 4, 3, 3), padding=[(0, 9), (1, 2)], **T),
    "wide padding": operation((1, 1, 1024, 1024), (1, 1, 3, 3), padding=500, padding_mode="reflect"),
    "dilated input": operation((1, 4, 400, 400), (4, 4, 3, 3), input_dilation=3, padding=[(0, 1), (2, 0)]),
}
ON_REFERENCE = {
    "shift, a volume of large planes": operation((1, 1, 4, 1500, 1500), (1, 1, 3, 3, 3)),
    "channels last": operation((2, 1024, 1024, 8), (1, 1, 8, 8), layout="channels_last"),
    "float16": operation((1, 1, 4096, 4096), (1, 1, 3, 3), "float16", layout="channels_first", padding=1),
    "transposed, gaps": operation((1, 4, 512, 1024), (4, 4, 1, 1), stride=3, **T),
    "a short signal, padded widely": operation((1, 1, 99), (1, 1, 3), padding=1 << 22, padding_mode="circular"),
    "wide padding of zeros, strided": operation((1, 1, 99, 99), (1, 1, 3, 3), padding=2500, stride=3),
    "columns, reflected": operation((1, 3, 2048, 1024, 3), (3, 3, 1, 1, 3), padding=1, padding_mode="reflect"),
    "int8, saturated": operation((1, 4, 2048, 2048), (4, 4, 1, 1), "int8", overflow="saturate"),
    "int8, wrapped": operation((1, 1, 4096, 4096), (1, 1, 3, 3), "int8", overflow="wrap", padding=1),
    "int8 to bfloat16": operation((1, 1, 4096, 4096), (1, 1, 3, 3), "int8", output_dtype="bfloat16"),
    "bool, channels last": operation((1, 2048, 2048, 3), (3, 3, 3, 1), "bool", layout="channels_last"),
    "int64": operation((1, 1, 2048, 2048), (1, 1, 3, 3), "int64"),
}


@needs_torch
@pytest.mark.parametrize("name", ON_TORCH)
def test_these_plans_of_torch_are_what_happens(meter: Meter, name: str) -> None:
    check(meter, "torch:cpu", ON_TORCH[name])


@pytest.mark.parametrize("name", ON_REFERENCE)
def test_these_plans_of_the_reference_are_what_happens(meter: Meter, name: str) -> None:
    check(meter, "reference", ON_REFERENCE[name])


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
def test_large_integers_are_planned_with_what_finds_those_that_do_not_fit(meter: Meter, dtype: DTypeName) -> None:
    check(meter, "reference", operation((1, 1, 4096, 2048), (1, 1, 2, 2), dtype), largest=True)


TRANSFORMED: dict[str, tuple[tuple[int, ...], tuple[int, ...], DTypeName, dict[str, Any]]] = {
    "a picture": ((1, 1, 3000, 3000), (1, 1, 31, 31), "float32", {}),
    "padded": ((1, 1, 4096, 2048), (1, 1, 15, 15), "float32", {"padding": "same", "padding_mode": "reflect"}),
    "a signal": ((1, 1, 1 << 23), (1, 1, 1025), "float32", {}),
    "depthwise": ((8, 64, 112, 112), (64, 1, 15, 15), "float32", {"groups": 64, "padding": 7}),
    "many channels": ((1, 64, 56, 56), (64, 64, 31, 31), "float32", {"padding": 15}),
    "float64": ((1, 1, 2048, 2048), (1, 1, 31, 31), "float64", {}),
    "complex64": ((1, 1, 2048, 2048), (1, 1, 31, 31), "complex64", {}),
    "bfloat16": ((1, 1, 4096, 2048), (1, 1, 31, 31), "bfloat16", {}),
    "transposed": ((1, 2, 512, 512), (2, 2, 9, 9), "float32", {**T, "stride": 4}),
    "transposed, channels last": ((4, 300, 300, 1), (5, 5, 66, 1), "float32", {**T, "layout": "channels_last"}),
    "full mode": ((1, 1, 1 << 20), (1, 1, 1 << 20), "float32", {"padding": "full"}),
}


@pytest.mark.parametrize("backend", ["reference", pytest.param("torch:cpu", marks=needs_torch)])
@pytest.mark.parametrize("name", TRANSFORMED)
def test_plans_of_transforms_are_what_happens(meter: Meter, name: str, backend: str) -> None:
    input_shape, weight_shape, dtype, parameters = TRANSFORMED[name]
    check(meter, backend, operation(input_shape, weight_shape, dtype, **parameters), "fft")
