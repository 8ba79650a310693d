"""How near an answer must come to a suite's value: the tolerance that the service states, and nothing looser."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from tests.core import oracle

from convolver.core.dtypes import TABLE
from convolver.core.plan import Plan

Array = NDArray[Any]


def assert_agrees(
    plan: Plan, output: Array, expected: Array, input: Array, weight: Array, bias: Array | None = None
) -> None:
    """`output` has the expected shape and values: integers, NaN and infinities the very ones, others within twice the
    tolerance of a direct sum (or of an FFT, where the plan says so), since a suite's value has an error of its own.

    The arrays are those that were convolved, in any type that holds their values.
    """
    op = plan.operation
    assert output.shape == expected.shape
    if TABLE[op.output_dtype].exact:
        np.testing.assert_array_equal(output, expected)
        return
    y, ref = _wide(output), _wide(expected)
    scales = oracle.scale(op, input, weight, bias)
    if plan.algorithm == "fft":  # its errors spread over the whole output
        scales = np.full_like(scales, 4 * scales.max(initial=0))
    tolerance = 2 * oracle.bound(op, scales, ref)
    with np.errstate(invalid="ignore"):
        wrong = ~((np.abs(y - ref) <= tolerance) | (y == ref) | (np.isnan(y) & np.isnan(ref)))
    assert not wrong.any(), (
        f"{wrong.sum()} of {wrong.size} wrong, first at {np.argwhere(wrong)[0]}: "
        f"{y[wrong][0]}, not {ref[wrong][0]} +- {tolerance[wrong][0]}; {op}"
    )


def _wide(array: Array) -> Array:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
