"""What a plan promises: memory that suffices, limits that are checked before anything is allocated."""

from __future__ import annotations

import tracemalloc
from math import prod
from typing import Any

import numpy as np
import pytest
from tests.core.operations import arrays, backend

from convolver.core.choose import choose
from convolver.core.dtypes import TABLE
from convolver.core.errors import IntegerOverflow, LimitExceeded
from convolver.core.geometry import Geometry
from convolver.core.operation import LARGEST, Tensor
from convolver.core.parse import parse, parse_execution
from convolver.core.plan import LARGEST_COUNT, Limits, Plan

SERVERS = Limits(max_output_elements=2**30, max_request_bytes=2**34, max_work=10**12)


def planned(input: tuple[int, ...], weight: tuple[int, ...], dtype: Any = "float32", **parameters: Any) -> Plan:  # noqa: ANN401 - as callers write it
    """On the reference, without bias."""
    op = parse(Tensor(dtype, input), Tensor(dtype, weight), None, parameters)  # type: ignore[arg-type]  # of any kind
    return choose(Geometry.of(op), parse_execution(parameters), [backend("reference").capability])  # type: ignore[arg-type]  # of any kind


PLAIN = ((1, 3, 8, 8), (4, 3, 3, 3))


def test_figures_are_those_of_the_geometry() -> None:
    plan = planned(*PLAIN)
    assert plan.output_shape == (1, 4, 6, 6)
    assert plan.macs == plan.work == 4 * 36 * 27
    assert plan.input_bytes == 4 * (3 * 64 + 4 * 27)
    assert plan.output_bytes == 4 * 4 * 36
    assert plan.peak_bytes == plan.input_bytes + plan.output_bytes + plan.workspace_bytes


LIMITED = [
    ("max_output_elements", 143, 144, "the output's elements", "--max-output-elements"),
    ("max_request_bytes", 1775, None, "bytes of inputs, output and workspace", "--max-request-bytes"),
    ("max_work", 3887, 3888, "multiply-accumulates", "--max-work"),
]


@pytest.mark.parametrize(("name", "limit", "value", "subject", "setting"), LIMITED, ids=[row[0] for row in LIMITED])
def test_a_limit_is_refused_with_figure_limit_and_setting(
    name: str, limit: int, value: int | None, subject: str, setting: str
) -> None:
    plan = planned(*PLAIN)
    value = value or plan.peak_bytes
    with pytest.raises(LimitExceeded) as caught:
        Limits(**{name: limit}).check(plan)
    error = caught.value
    assert (error.subject, error.limit, error.value, error.setting) == (subject, limit, value, setting)
    for text in (subject, str(value), str(limit), setting):
        assert text in error.message
    Limits(**{name: value}).check(plan)


def test_without_limits_everything_passes_that_the_contract_can_say() -> None:
    Limits().check(planned(*PLAIN))
    Limits().check(planned((1, 1, 2**30, 2**30), (1, 1, 1, 1)))
    wide = planned((1, 1, LARGEST, 2**20), (2**10, 1, 2**10, 2**10), padding="same")
    assert wide.work > LARGEST_COUNT
    with pytest.raises(LimitExceeded, match=rf"{wide.work}, above this server's limit of {2**64 - 1}"):
        Limits(max_request_bytes=2**70).check(wide)


ATTACKS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "transposed, stride 2^20": ((1, 1, 2, 2), (1, 1, 3, 3), {"transposed": True, "stride": 2**20}),
    "transposed, dilation 2^20": ((1, 1, 2, 2), (1, 1, 3, 3), {"transposed": True, "dilation": 2**20}),
    "transposed, negative padding": ((1, 1, 2, 2), (1, 1, 3, 3), {"transposed": True, "padding": -(2**29)}),
    "output_padding": (
        (1, 1, 2, 2),
        (1, 1, 3, 3),
        {"transposed": True, "stride": 2**28, "output_padding": 2**28 - 1},
    ),
    "padding 2^30": ((1, 1, 2, 2), (1, 1, 3, 3), {"padding": [(2**30, 2**30 - 3), (1, 1)]}),
    "padding of one side, reflected": (
        (1, 1, 9),
        (1, 1, 3),
        {"padding": [(0, LARGEST - 7)], "padding_mode": "reflect"},
    ),
    "padding 2^30, stride 2^30": ((1, 1, 2, 2), (1, 1, 3, 3), {"padding": 2**30 - 1, "stride": 2**30}),
    "input_dilation 2^30": ((1, 1, 2, 2), (1, 1, 3, 3), {"input_dilation": 2**30}),
    "input_dilation 2^30, stride 2^30": ((1, 1, 3, 3), (1, 1, 1, 1), {"input_dilation": 2**30 - 1, "stride": 2**30}),
    "full mode of two long signals": ((1, 1, 2**24), (1, 1, 2**24), {"padding": "full", "algorithm": "direct"}),
    "the same by FFT": ((1, 1, 2**24), (1, 1, 2**24), {"padding": "full"}),
    "many kernels": ((1, 1, 2**12, 2**12), (2**20, 1, 1, 1), {}),
    "an empty batch of huge pictures": ((0, 3, 2**20, 2**20), (4, 3, 3, 3), {"transposed": False, "batch_groups": 1}),
}
HARMLESS = {"an empty batch of huge pictures", "the same by FFT"}


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in HARMLESS])
def test_a_small_request_of_a_huge_answer_is_refused_without_allocating(name: str) -> None:
    input_shape, weight_shape, parameters = ATTACKS[name]
    plan = planned(*PLAIN)  # what is imported late is imported now
    tracemalloc.start()
    try:
        with pytest.raises(LimitExceeded) as caught:
            SERVERS.check(planned(input_shape, weight_shape, **parameters))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100_000
    assert caught.value.value > caught.value.limit
    SERVERS.check(plan)


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_sounds_huge_and_is_not_is_taken(name: str) -> None:
    input_shape, weight_shape, parameters = ATTACKS[name]
    SERVERS.check(planned(input_shape, weight_shape, **parameters))


IMAGE, VOLUME = (1, 1, 500, 500), (1, 4, 30, 30, 30)
T = {"transposed": True}
WORKLOADS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any, dict[str, Any]]] = {
    "shift": (IMAGE, (1, 1, 3, 3), "float32", {}),
    "shift, padded": (IMAGE, (1, 1, 3, 3), "float32", {"padding": 9, "padding_mode": "reflect"}),
    "shift, dilated": (IMAGE, (1, 1, 3, 3), "float32", {"input_dilation": 2}),
    "shift, channels_last": ((1, 200, 200, 8), (3, 3, 1, 8), "float32", {"layout": "channels_last", "groups": 8}),
    "shift, float16": (IMAGE, (1, 1, 3, 3), "float16", {}),
    "shift, gelu": (IMAGE, (1, 1, 3, 3), "float32", {"activation": "gelu"}),
    "shift, hardswish": (IMAGE, (1, 1, 3, 3), "float64", {"activation": "hardswish"}),
    "pointwise": ((4, 16, 80, 80), (16, 16, 1, 1), "float32", {}),
    "pointwise, channels_last": ((4, 80, 80, 16), (1, 1, 16, 16), "float32", {"layout": "channels_last"}),
    "gemm": ((4, 3, 200, 200), (8, 3, 3, 3), "float32", {"padding": 1}),
    "gemm, channels_last": ((4, 200, 200, 3), (3, 3, 3, 8), "float32", {"layout": "channels_last"}),
    "gemm, groups": ((4, 6, 200, 200), (8, 3, 3, 3), "bfloat16", {"groups": 2}),
    "gemm, batch_groups": ((4, 3, 200, 200), (8, 3, 3, 3), "float32", {"batch_groups": 2}),
    "gemm, wider output": ((4, 3, 100, 100), (8, 3, 3, 3), "float32", {"output_dtype": "complex128"}),
    "gemm, complex": (VOLUME, (4, 4, 3, 3, 3), "complex64", {}),
    "scatter": ((2, 8, 64, 64), (8, 8, 3, 3), "float32", {**T, "stride": 2}),
    "scatter, extended": ((2, 8, 64, 64), (8, 8, 3, 3), "float32", {**T, "padding": -9}),
    "scatter, channels_last": ((2, 64, 64, 8), (3, 3, 8, 8), "float32", {**T, "layout": "channels_last"}),
    "large weight": ((1, 64, 8, 8), (256, 64, 3, 3), "float64", {"flip": True}),
    "int8": ((4, 3, 100, 100), (8, 3, 3, 3), "int8", {"output_dtype": "int32"}),
    "int8, saturated": (IMAGE, (1, 1, 3, 3), "int8", {"overflow": "saturate"}),
    "int8, wrapped": (IMAGE, (1, 1, 3, 3), "int8", {"overflow": "wrap"}),
    "int8 to bfloat16": (IMAGE, (1, 1, 3, 3), "int8", {"output_dtype": "bfloat16"}),
    "bool, channels_last": ((4, 80, 80, 16), (1, 1, 16, 16), "bool", {"layout": "channels_last"}),
    "int64": (IMAGE, (1, 1, 3, 3), "int64", {"overflow": "wrap"}),
    "int64 with its shadow": ((4, 80, 80, 16), (1, 1, 16, 16), "int64", {"layout": "channels_last"}),
    "int64 with its shadow, gemm": ((1, 3, 200, 200), (8, 3, 3, 3), "int64", {}),
    "int64 with its shadow, scatter": ((2, 8, 64, 64), (8, 8, 3, 3), "int64", {**T, "stride": 2}),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKLOADS)
def test_the_reference_allocates_no_more_than_planned(name: str) -> None:
    input_shape, weight_shape, dtype, parameters = WORKLOADS[name]
    plan = planned(input_shape, weight_shape, dtype, **parameters)
    x, w, _ = arrays(plan.operation, 0)
    if "shadow" in name:
        x = x << np.int64(56)  # beyond 2^53 and, summed, about 2^63
    reference = backend("reference")
    tracemalloc.start()
    try:
        reference.run(plan, reference.prepare(plan, w, None), x)
    except IntegerOverflow:
        assert "shadow" in name
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak <= plan.workspace_bytes + plan.output_bytes + 200_000


def test_the_plan_is_not_far_above_what_is_allocated() -> None:
    for name in ("shift", "shift, padded", "gemm", "gemm, complex", "pointwise"):
        input_shape, weight_shape, dtype, parameters = WORKLOADS[name]
        plan = planned(input_shape, weight_shape, dtype, **parameters)
        inputs = (
            prod(plan.geometry.padded_size) * plan.geometry.in_channels * plan.geometry.batch * TABLE[dtype].itemsize
        )
        assert plan.workspace_bytes <= inputs + plan.output_bytes + 5 * 2**20


def test_parameters_are_written_out_in_numbers() -> None:
    plan = planned((1, 1, 9, 8), (1, 1, 3, 4), padding="same", stride=(1, 2), padding_mode="reflect")
    assert plan.parameters["padding"] == ((1, 1), (1, 1))
    assert plan.parameters["stride"] == (1, 2)
    assert plan.parameters["padding_mode"] == "reflect"
    assert plan.parameters["backend"] == "reference"
    assert plan.parameters["algorithm"] == "direct"
    assert plan.parameters["output_dtype"] == "float32"
    assert plan.parameters["activation"] == "none"
