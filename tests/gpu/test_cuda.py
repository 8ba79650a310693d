"""The torch back end on a CUDA device against the oracle, and its transfers."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core import oracle
from tests.core.operations import Array, arrays, operation, requests, small_integers

from convolver.core.backends import Backend, available
from convolver.core.choose import choose
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Operation
from convolver.core.pieces import pieces
from convolver.core.plan import Plan

NAME = "torch:cuda:0"
FLOATS: list[DTypeName] = [row.name for row in TABLE.values() if not row.exact]
WINOGRAD = 10
"""How many times the tolerance cuDNN's transforms may take (docs/semantics.md)."""


@cache
def gpu() -> Backend:
    return available(NAME, 1)[0]


def plan_of(op: Operation, **execution: Any) -> Plan:  # noqa: ANN401 - of Execution
    how = Execution(**{"backend": NAME, "algorithm": "direct", **execution})
    return choose(Geometry.of(op), how, [gpu().capability])


def run(plan: Plan, x: Array, w: Array, bias: Array | None = None, out: Array | None = None) -> Array:
    return gpu().run(plan, gpu().prepare(plan, w, bias), x, out).output


def close(y: Array, expected: Array, bound: float) -> None:
    """Relative to the largest of what is expected."""
    difference = np.abs(y.astype(np.complex128) - expected.astype(np.complex128)).max(initial=0)
    assert difference <= bound * np.abs(expected.astype(np.complex128)).max(initial=0)


@pytest.mark.parametrize("dtype", FLOATS)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1))
def test_small_whole_numbers_give_the_exact_sum(dtype: DTypeName, data: st.DataObject, seed: int) -> None:
    op = data.draw(requests(dtype)).operation
    x, w, bias = arrays(op, seed, small_integers)
    y = run(plan_of(op), x, w, bias)
    assert y.dtype == TABLE[op.output_dtype].numpy
    assert y.shape == Geometry.of(op).output_shape
    if op.activation == "none" and TABLE[op.output_dtype].bits > 8:
        close(y, oracle.convolution(op, x, w, bias), 1e-5 if TABLE[op.output_dtype].bits >= 24 else 2e-3)


LARGE = operation((8, 16, 512, 512), (16, 16, 3, 3), padding=1)
"""Its items travel while others are computed."""


def of_large(seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(shape, np.float32) for shape in (LARGE.input_shape, LARGE.weight_shape))  # type: ignore[return-value]  # two of them


def by_torch(x: Array, w: Array) -> Array:
    """In float64 on the device."""
    import torch

    there, kernels = (torch.from_numpy(a).to("cuda:0", torch.float64) for a in (x, w))
    y: Array = torch.nn.functional.conv2d(there, kernels, padding=1).cpu().numpy()
    return y


def test_a_large_batch_is_what_torch_makes_of_it() -> None:
    from convolver.core.backends.torch_cuda import parts

    plan, (x, w) = plan_of(LARGE), of_large()
    assert len(parts(plan)) == 8
    expected, out = by_torch(x, w), np.zeros(plan.output_shape, np.float32)
    close(run(plan, x, w), expected, WINOGRAD * (16 * 9 + 4) * 2**-24)
    assert run(plan, x, w, out=out) is out
    close(out, expected, WINOGRAD * (16 * 9 + 4) * 2**-24)


def test_an_output_with_gaps_is_written_to() -> None:
    plan, (x, w) = plan_of(LARGE), of_large()
    wide = np.zeros((*plan.output_shape[:3], plan.output_shape[3] + 1), np.float32)
    run(plan, x, w, out=wide[..., 1:])
    close(wide[..., 1:], by_torch(x, w), WINOGRAD * (16 * 9 + 4) * 2**-24)
    assert not wide[..., 0].any()


def test_pieces_are_together_the_whole() -> None:
    plan, (x, w) = plan_of(LARGE), of_large()
    made = pieces(plan, lambda geometry, execution: choose(geometry, execution, [gpu().capability]))
    assert len(made) == 8
    prepared, out = gpu().prepare(plan, w, None), np.zeros(plan.output_shape, np.float32)
    for piece in made:
        gpu().run(piece.plan, prepared, x[piece.input], out[piece.output])
    close(out, by_torch(x, w), WINOGRAD * (16 * 9 + 4) * 2**-24)


def test_an_input_may_change_as_soon_as_the_run_is_over() -> None:
    plan, (x, w) = plan_of(LARGE), of_large()
    expected, copy = by_torch(x, w), x.copy()
    y = run(plan, copy, w)
    copy.fill(np.nan)
    close(y, expected, WINOGRAD * (16 * 9 + 4) * 2**-24)


@pytest.mark.parametrize(("precision", "bound"), [("highest", 2**-24), ("high", 2**-10), ("medium", 2**-7)])
def test_tensor_cores_are_used_only_where_precision_allows(precision: str, bound: float) -> None:
    plan, (x, w) = plan_of(LARGE, precision=precision), of_large()
    close(run(plan, x, w), by_torch(x, w), WINOGRAD * (16 * 9 + 4) * bound)


def test_threads_that_share_the_device_do_not_mix_their_tensors_up() -> None:
    plan, found, wrong = plan_of(LARGE), [of_large(seed) for seed in range(4)], list[str]()

    def work(x: Array, w: Array) -> None:
        try:
            for _ in range(4):
                close(run(plan, x, w), by_torch(x, w), WINOGRAD * (16 * 9 + 4) * 2**-24)
        except Exception as error:  # noqa: BLE001 - told to the test's own thread
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=operands) for operands in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_deterministic_runs_have_the_same_bits() -> None:
    plan, (x, w) = plan_of(LARGE, deterministic=True), of_large()
    assert len({run(plan, x, w).tobytes() for _ in range(3)}) == 1


def test_an_fft_is_what_direct_sums_are() -> None:
    op = operation((1, 3, 256, 256), (4, 3, 21, 21))
    x, w, _ = arrays(op, 0)
    close(run(plan_of(op, algorithm="fft"), x, w), oracle.convolution(op, x, w), 1e-5)


def test_pinned_memory_stays_what_it_was() -> None:
    import torch

    plan, (x, w) = plan_of(LARGE), of_large()
    run(plan, x, w)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(10):
        run(plan, x, w)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before
