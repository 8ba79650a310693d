"""Gradients on each back end: against the oracle over requests of every kind, and the laws that they obey."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core import gradient_oracle as oracle
from tests.core.gradient_runs import EVERYTHING, differentiable, gradients, operands
from tests.core.operations import BACKENDS, Array, operation, run, small_integers, usual
from tests.core.test_memory import FORMS, same_values

from convolver.core import methods
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted, outputs
from convolver.core.operation import LARGEST, Operation

FLOATS = [name for name, row in TABLE.items() if not row.exact]
each_backend = pytest.mark.parametrize("name", BACKENDS)
each_float = pytest.mark.parametrize("dtype", FLOATS)
seeds = st.integers(0, 2**32 - 2)


@each_backend
@each_float
@settings(max_examples=120)
@given(data=st.data(), seed=seeds)
def test_they_are_within_the_tolerance_of_the_oracles(
    name: str, dtype: DTypeName, data: st.DataObject, seed: int
) -> None:
    op = data.draw(differentiable(dtype))
    x, w, g = operands(op, seed)
    before = [a.tobytes() for a in (x, w, g)]
    oracle.assert_agree(op, gradients(name, op, x, w, g), x, w, g)
    assert [a.tobytes() for a in (x, w, g)] == before


@each_backend
@each_float
@settings(max_examples=60)
@given(data=st.data(), seed=seeds)
def test_small_whole_numbers_give_the_exact_sums_rounded_once(
    name: str, dtype: DTypeName, data: st.DataObject, seed: int
) -> None:
    op = data.draw(differentiable(dtype))
    x, w, g = operands(op, seed, small_integers)
    grads = gradients(name, op, x, w, g)
    with np.errstate(over="ignore"):
        for each, expected in oracle.gradients(op, x, w, g)._asdict().items():
            rounded = expected.astype(TABLE[dtype].numpy)
            np.testing.assert_array_equal(grads[each].astype(np.complex128), rounded.astype(np.complex128), each)


SUBSETS = [Wanted(*each) for each in product((True, False), repeat=3) if any(each)]


@each_backend
@pytest.mark.parametrize("wanted", SUBSETS, ids=str)
@settings(max_examples=20)
@given(data=st.data(), seed=seeds)
def test_any_of_them_come_alone_from_what_they_need(name: str, wanted: Wanted, data: st.DataObject, seed: int) -> None:
    op = data.draw(differentiable("float64"))
    x, w, g = operands(op, seed)
    grads = gradients(name, op, x if wanted.weight else None, w if wanted.input else None, g, wanted)
    headers = outputs(Geometry.of(op), wanted)
    assert [(each, grad.dtype, grad.shape) for each, grad in grads.items()] == [
        (each, TABLE[dtype].numpy, shape) for each, (dtype, shape) in headers
    ]
    oracle.assert_agree(op, grads, x, w, g)


@each_backend
@pytest.mark.parametrize("wanted", [Wanted(True, False, True), Wanted(False, True, True)], ids=str)  # noqa: FBT003 - three words
def test_what_they_need_must_be_there(name: str, wanted: Wanted) -> None:
    op = operation((1, 2, 5), (3, 2, 2))
    with pytest.raises(ValueError, match=f"the {'weight' if wanted.input else 'input'} is missing"):
        gradients(name, op, None, None, np.ones((1, 3, 4), np.float32), wanted)


def with_specials(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Array:
    """Normal numbers, a few of them NaN or infinite."""
    array = usual(rng, dtype, shape)
    places = rng.random(shape) < 0.1
    array[places] = rng.choice([np.nan, np.inf, -np.inf], size=int(places.sum()))
    return array


def assert_same_specials(grad: Array, ref: Array) -> None:
    """NaN and infinities stand where the oracle has them, and nowhere else."""
    wide = grad.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(wide), np.isnan(ref))
    np.testing.assert_array_equal(wide[np.isinf(ref)], ref[np.isinf(ref)])
    assert np.isfinite(wide[np.isfinite(ref)]).all()


@each_backend
@pytest.mark.parametrize("special", ["grad_output", "weight", "input"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=100)
@given(data=st.data(), seed=seeds)
def test_nan_and_infinity_reach_what_they_touch_and_nothing_else(
    name: str, dtype: DTypeName, special: str, data: st.DataObject, seed: int
) -> None:
    """Padding's zeros are factors of the weight's gradient, and of a transposed convolution's; that they are left out
    there is allowed, so those are not asked.
    """
    op = data.draw(differentiable(dtype).filter(lambda op: special == "grad_output" or not op.transposed))
    (x, w, g), (odd_x, odd_w, odd_g) = operands(op, seed), operands(op, seed, with_specials)
    chosen = (
        odd_x if special == "input" else x,
        odd_w if special == "weight" else w,
        odd_g if special == "grad_output" else g,
    )
    names = {"grad_output": ["grad_input", "grad_bias"], "weight": ["grad_input"], "input": ["grad_weight"]}[special]
    grads, refs = gradients(name, op, *chosen), oracle.gradients(op, *chosen)._asdict()
    for each in names:
        assert_same_specials(grads[each], refs[each])


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@settings(max_examples=150)
@given(data=st.data(), seed=seeds)
@each_backend
def test_they_are_the_adjoints_of_the_convolution(name: str, dtype: DTypeName, data: st.DataObject, seed: int) -> None:
    """<A x, g> = <x, A* g>, and the same of the weight."""
    op = data.draw(differentiable(dtype))
    x, w, g = operands(op, seed)
    grads = gradients(name, op, x, w, g)
    y, offset = run(op, x, w), run(op, np.zeros_like(x), w)  # the offset is what a constant padding gives
    size = 1e-13 * oracle.scales(op, x, w, g).grad_bias.sum() * x.size * w.size + 1e-300
    forward, weighed = complex(np.vdot(g, np.subtract(y, offset))), complex(np.vdot(g, y))
    assert abs(forward - complex(np.vdot(grads["grad_input"], x))) <= size
    assert abs(weighed - complex(np.vdot(grads["grad_weight"], w))) <= size


@pytest.mark.parametrize("size", [1, 1 << 8, 1 << 12])
@settings(max_examples=100)
@given(op=differentiable("float64"), seed=seeds)
def test_blocks_of_any_size_give_the_same(size: int, op: Operation, seed: int) -> None:
    x, w, g = operands(op, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "COLUMNS_BYTES", size)
        grads = gradients("reference", op, x, w, g)
    oracle.assert_agree(op, grads, x, w, g)


LARGER: list[tuple[tuple[int, ...], tuple[int, ...], Any]] = [
    ((2, 12, 9, 30), (2, 12, 3, 3), {"padding": 1}),  # few outputs: windows of grad_output
    ((2, 12, 9, 30), (4, 6, 2, 5), {"padding": "full", "groups": 2, "padding_mode": "reflect"}),
    ((3, 5, 31, 8), (7, 5, 4, 3), {"stride": (2, 3), "padding": 2}),
    ((2, 6, 40), (6, 3, 7), {"transposed": True, "groups": 2, "stride": 3, "padding": 2, "output_padding": 1}),
    ((2, 10, 40), (10, 2, 7), {"transposed": True, "padding": 2}),
]


@each_backend
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
@pytest.mark.parametrize("case", LARGER, ids=str)
def test_larger_ones_too(name: str, dtype: DTypeName, case: Any) -> None:  # noqa: ANN401 - a row of the table
    input_shape, weight_shape, parameters = case
    op = operation(input_shape, weight_shape, dtype, **parameters)
    x, w, g = operands(op, 5)
    oracle.assert_agree(op, gradients(name, op, x, w, g), x, w, g)


@each_backend
@pytest.mark.parametrize("mode", ["reflect", "symmetric", "replicate", "circular"])
def test_padding_of_many_lengths_goes_back_to_its_elements(name: str, mode: str) -> None:
    op = operation((1, 1, 3), (1, 1, 1), "float64", padding=[(20, 31)], padding_mode=mode)
    x, w, g = operands(op, 0)
    oracle.assert_agree(op, gradients(name, op, x, w, g), x, w, g)


@each_backend
def test_with_respect_to_reals_only_the_real_part_counts(name: str) -> None:
    op = operation((2, 3, 5), (4, 3, 2), output_dtype="complex64")
    x, w, g = operands(op, 1)
    oracle.assert_agree(op, gradients(name, op, x, w, g), x, w, g)
    twin = operation((2, 3, 5), (4, 3, 2))
    for each, grad in gradients(name, twin, x, w, np.ascontiguousarray(g.real)).items():
        np.testing.assert_array_equal(gradients(name, op, x, w, g)[each], grad)


@each_backend
def test_a_wider_output_widens_the_sums(name: str) -> None:
    op = operation((1, 1, 3), (1, 1, 1), output_dtype="float64")
    g = np.array([2.0**24, 1, -(2.0**24)]).reshape(1, 1, 3)
    grads = gradients(name, op, np.ones((1, 1, 3), np.float32), np.ones((1, 1, 1), np.float32), g)
    assert [grads["grad_bias"].item(), grads["grad_weight"].item()] == [1, 1]


def test_bfloat16_of_a_double_sum_is_rounded_once() -> None:
    """1 + 2^-8 + 2^-40 lies above the middle of two bfloat16; by way of float32 it would come to lie on it."""
    op = operation((1, 1, 3), (1, 1, 1), "bfloat16", output_dtype="float64")
    x = np.ones((1, 1, 3), TABLE["bfloat16"].numpy)
    grads = gradients("reference", op, x, x[:, :, :1], np.array([1, 2**-8, 2**-40]).reshape(1, 1, 3))
    assert float(grads["grad_bias"][0]) == 1 + 2**-7


EMPTY: list[tuple[tuple[int, ...], tuple[int, ...], Any]] = [
    ((0, 2, 5), (3, 2, 2), {}),
    ((0, 5, 2), (2, 2, 3), {"layout": "channels_last"}),
    ((0, 2, 5), (2, 3, 2), {"transposed": True, "flip": True}),
    ((0, 1, LARGEST, 7), (1, 1, 3, 2), {"padding": 1, "padding_mode": "replicate"}),
    ((0, 1, 1, 1, 1), (1, 1, 1, 1, 1), {"padding": LARGEST // 2, "stride": LARGEST}),
    ((0, 2, 5), (4, 2, 2), {"batch_groups": 2}),
]


@each_backend
@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_of_an_empty_batch_they_are_zero(name: str, case: Any) -> None:  # noqa: ANN401 - a row of the table
    input_shape, weight_shape, parameters = case
    op = operation(input_shape, weight_shape, **parameters)
    g = np.empty(Geometry.of(op).output_shape, np.float32)
    grads = gradients(name, op, np.empty(input_shape, np.float32), np.ones(weight_shape, np.float32), g)
    assert [grad.shape for grad in grads.values()] == [shape for _, (_, shape) in outputs(Geometry.of(op), EVERYTHING)]
    assert not any(grad.any() for grad in grads.values())


@each_backend
@pytest.mark.parametrize("mode", ["zeros", "constant"])
def test_an_empty_dimension_is_padding(name: str, mode: str) -> None:
    value = 3.0 if mode == "constant" else 0.0
    padding: Any = {"padding": [(0, 0), (1, 2)], "input_dilation": (3, 2), "padding_mode": mode, "padding_value": value}
    op = operation((1, 2, 3, 0), (4, 2, 2, 2), **padding)
    x, w, g = operands(op, 0)
    oracle.assert_agree(op, gradients(name, op, x, w, g), x, w, g)


OUTSIDE = [
    {"padding": [(7, -10)]},
    {"padding": [(-10, 7)]},
    {"padding": [(-2, -3)]},
    {"padding": 4, "stride": 10, "output_padding": 9},
]


@each_backend
@pytest.mark.parametrize("parameters", OUTSIDE, ids=str)
def test_transposed_positions_that_nothing_reaches_have_no_part(name: str, parameters: Any) -> None:  # noqa: ANN401 - as callers write it
    op = operation((1, 1, 3), (1, 2, 3), transposed=True, **parameters)
    x, w, g = operands(op, 0)
    oracle.assert_agree(op, gradients(name, op, x, w, g), x, w, g)


@each_backend
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "complex128", "bfloat16"])
@pytest.mark.parametrize("parameters", [{"padding": 1}, {"transposed": True}, {"stride": 2}], ids=str)
def test_the_layout_in_memory_does_not_matter(name: str, dtype: DTypeName, form: str, parameters: Any) -> None:  # noqa: ANN401 - as callers write it
    op = operation((2, 5, 6, 5), (3, 3, 5, 5), dtype, layout="channels_last", **parameters)
    usually = operands(op, 1, small_integers)
    expected = gradients(name, op, *usually)
    x, w, g = (same_values(array, form) for array in usually)
    grads = gradients(name, op, x, w, g)
    for each, grad in grads.items():
        np.testing.assert_array_equal(grad, expected[each])
        assert grad.flags.c_contiguous
        assert grad.flags.writeable
        assert not any(np.shares_memory(grad, array) for array in usually)
