"""Cancellation: work ends at the next checkpoint, and leaves its back end as it found it."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from math import inf
from typing import Any, NamedTuple

import numpy as np
import pytest
from tests.core import stack_runs
from tests.core.operations import BACKENDS, Array, operation
from tests.core.stack_runs import EVERYTHING, Stack, convolution, pooling

from convolver.core.adjoint import correlation, weight_block
from convolver.core.backends import LayerWeights, available, reference_gradients
from convolver.core.backends import threads as threads_module
from convolver.core.backends.activation_gradients import activation_gradient
from convolver.core.backends.activations import BLOCK as ACTIVATED
from convolver.core.backends.activations import activate
from convolver.core.backends.reference_pooling import pool, pool_gradient
from convolver.core.cancellation import Cancelled, Stop, stopping
from convolver.core.choose import choose
from convolver.core.choose_stack import choose_stack
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution, Tensor

UNTOUCHED = -999.0
THREADS = 3

SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], str, dict[str, Any]]] = {
    "columns": ((3, 64, 40, 40), (64, 64, 3, 3), "float32", {"padding": 1}),
    "shifted": ((4, 3, 128, 128), (4, 3, 3, 3), "float32", {}),
    "ordered": ((1, 1, 400, 256), (1, 1, 3, 3), "float64", {}),
    "transposed": ((6, 4, 128, 128), (4, 6, 3, 3), "float32", {"transposed": True, "stride": 2}),
    "one element": ((1, 8, 64, 64), (5, 8, 1, 1), "float32", {}),
    "spanning": ((7, 16, 4, 4), (32, 16, 4, 4), "float32", {}),
}

Work = Callable[[Array], dict[str, Array]]


class Counting(Stop):
    """Counts the checkpoints that look at it, and is set from the one with the number `first` on."""

    def __init__(self, first: float = inf) -> None:
        super().__init__()
        self.seen, self._first, self._lock = 0, first, threading.Lock()

    @property
    def is_set(self) -> bool:
        with self._lock:
            self.seen += 1
            return self.seen >= self._first


class Case(NamedTuple):
    """Some work, the shape of its input, and the module and function that compute one block, layer or gradient."""

    work: Work
    shape: tuple[int, ...]
    module: str
    function: str


@pytest.fixture(autouse=True)
def crews(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads of our own, as where NumPy was told to have one; products of a few thousand elements are parts."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr("convolver.core.methods.PART_MACS", 10_000)
    threads_module.crew.cache_clear()
    yield
    threads_module.crew.cache_clear()


def ones(shape: tuple[int, ...], dtype: str = "float32") -> Array:
    return np.ones(shape, dtype)


def single(name: str, shape: tuple[int, ...], kernel: tuple[int, ...], *block: str) -> Case:
    """A convolution by FFT, whose weight is prepared once."""
    chosen, geometry = available(name, 1)[0], Geometry.of(operation(shape, kernel))
    plan = choose(geometry, Execution(backend=name, algorithm="fft"), [chosen.capability])
    prepared = chosen.prepare(plan, ones(kernel), None)
    return Case(lambda x: chosen.run(plan, prepared, x).outputs, shape, *block)


def gradients(name: str, shape: tuple[int, ...], kernel: tuple[int, ...], *block: str) -> Case:
    chosen, geometry = available(name, 1)[0], Geometry.of(operation(shape, kernel))
    plan = choose(geometry, Execution(backend=name), [chosen.capability], None, EVERYTHING)
    weight, g = ones(kernel), ones(geometry.output_shape)
    return Case(lambda x: chosen.gradients(plan, EVERYTHING, weight, x, g).outputs, shape, *block)


def stack(name: str, *block: str, wanted: Wanted | None = None) -> Case:
    chosen, header = available(name, 1)[0], Tensor("float32", (2, 3, 20, 20))
    layers = (convolution((8, 3, 3, 3)), pooling("max", kernel=[2, 2]), convolution((4, 8, 3, 3), activation="gelu"))
    made = Stack(header, layers)
    plan = choose_stack(made.steps, Execution(backend=name, algorithm="direct"), [chosen.capability], None, wanted)
    weights = [stack_runs.layer_weights(name, each) for each in stack_runs.operands(made, 0).weights]
    return Case(_stacked(chosen, plan, weights), header.shape, *block)


def _stacked(chosen: Any, plan: Any, weights: list[LayerWeights | None]) -> Work:  # noqa: ANN401 - of any back end
    def work(x: Array) -> dict[str, Array]:
        if not plan.wanted:
            outputs: dict[str, Array] = chosen.run_stack(plan, weights, x).outputs
            return outputs
        grads: dict[str, Array] = chosen.stack_gradients(plan, weights, x, ones(plan.output_shape)).outputs
        return grads

    return work


def case_of(what: str, name: str) -> Case:
    """The cases of every back end; `what` says which."""
    of_gradients = ("reference_gradients", "_product") if name == "reference" else ("torch_gradients", "_of_reals")
    makers: dict[str, Callable[[], Case]] = {
        "fft": lambda: single(name, (1, 2, 1200, 700), (2, 2, 15, 15), "overlap", "_products"),
        "fft of items": lambda: single(name, (200, 2, 100, 90), (2, 2, 15, 15), "overlap", "_products"),
        "stack": lambda: stack(name, "stacks", "_output"),
        "stack backward": lambda: stack(name, "stacks", "_backward", wanted=EVERYTHING),
        "gradients": lambda: gradients(name, (4, 32, 40, 40), (32, 32, 3, 3), *of_gradients),
    }
    return makers[what]()


WHATS = ["fft", "fft of items", "stack", "stack backward", "gradients"]


def counted(monkeypatch: pytest.MonkeyPatch, case: Case) -> list[None]:
    """Has an element for each block, layer or gradient that is computed from now on."""
    module, calls = import_module(f"convolver.core.backends.{case.module}"), list[None]()
    function = getattr(module, case.function)

    def counting(*arguments: object, **named: object) -> object:
        calls.append(None)
        return function(*arguments, **named)

    monkeypatch.setattr(module, case.function, counting)
    return calls


def stopped_from(first: float, work: Callable[[], object]) -> None:
    with pytest.raises(Cancelled), stopping(Counting(first)):
        work()


def assert_same(made: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, array in expected.items():
        np.testing.assert_array_equal(made[name], array, name)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("what", WHATS)
def test_the_rest_is_not_computed_and_the_next_call_is_right(
    what: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(what, name)
    x = np.random.default_rng(0).integers(-3, 4, case.shape).astype(np.float32)
    expected, calls, counting = case.work(x), counted(monkeypatch, case), Counting()
    with stopping(counting):
        assert_same(case.work(x), expected)
    everything, ran = len(calls), []
    assert counting.seen >= everything > 0
    for first in (1, 2, counting.seen // 2, counting.seen):
        calls.clear()
        stopped_from(first, lambda: case.work(x))
        ran.append(len(calls))
        assert_same(case.work(x), expected)
    assert ran[0] == 0
    assert ran == sorted(ran)
    assert ran[1] < everything


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("count", [1, THREADS])
def test_direct_sums_end_between_blocks_in_all_threads(name: str, count: int) -> None:
    input_shape, weight_shape, dtype, words = SHAPES[name]
    backend = available("reference", count)[0]
    geometry = Geometry.of(operation(input_shape, weight_shape, dtype, **words))  # type: ignore[arg-type]  # a type's name
    plan = replace(
        choose(geometry, Execution(backend="reference", algorithm="direct"), [backend.capability]), threads=count
    )
    prepared, x = backend.prepare(plan, ones(weight_shape, dtype), None), ones(input_shape, dtype)
    expected, counting = backend.run(plan, prepared, x).output, Counting()
    with stopping(counting):
        backend.run(plan, prepared, x)
    computed = list[int]()
    for first in (1, counting.seen // 2, counting.seen):
        out = np.full_like(expected, UNTOUCHED)
        stopped_from(first, lambda out=out: backend.run(plan, prepared, x, out))  # type: ignore[misc]  # bound here
        computed.append(int(np.count_nonzero((out != UNTOUCHED) & (out != 0))))
        np.testing.assert_array_equal(backend.run(plan, prepared, x).output, expected)
    assert computed[0] == 0
    assert max(computed) < expected.size
    assert computed[2] > 0


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("what", WHATS)
def test_what_was_cancelled_holds_no_memory(what: str, name: str) -> None:
    case = case_of(what, name)
    given = [ones(case.shape)]
    alive = weakref.ref(given[0])
    gc.disable()
    try:
        stopped_from(2, lambda: case.work(given.pop()))
        assert alive() is None
    finally:
        gc.enable()


def test_activations_end_between_their_blocks() -> None:
    x, counting = ones((3, ACTIVATED)), Counting()
    with stopping(counting):
        activate("gelu", x)
    assert counting.seen == 3
    stopped_from(2, lambda: activate("gelu", x))
    stopped_from(2, lambda: activation_gradient("gelu", x, x))


def test_pooling_ends_between_its_blocks() -> None:
    x = ones((8, 16, 256, 256))
    [step] = Stack(Tensor("float32", x.shape), (pooling("max", kernel=[2, 2]),)).steps
    stopped_from(2, lambda: pool(step, x))  # type: ignore[arg-type]  # a Pooling
    stopped_from(2, lambda: pool_gradient(step, x, ones((8, 16, 128, 128))))  # type: ignore[arg-type]  # a Pooling


def test_each_layer_and_each_gradient_on_torch_has_a_checkpoint() -> None:
    pytest.importorskip("torch")
    run, forward, backward, of_convolutions = 1, 3, 3, 2 * 3
    for what, expected in (("stack", run + forward), ("stack backward", run + forward + backward + of_convolutions)):
        case, counting = case_of(what, "torch:cpu"), Counting()
        with stopping(counting):
            case.work(ones(case.shape))
        assert counting.seen == expected


def test_each_gradient_and_each_block_of_the_references_has_a_checkpoint() -> None:
    x, weight = ones((4, 32, 40, 40)), ones((32, 32, 3, 3))
    geometry = Geometry.of(operation(x.shape, weight.shape))
    counts = []
    for wanted in (EVERYTHING, Wanted(input=False, weight=True, bias=False)):
        counting = Counting()
        with stopping(counting):
            reference_gradients.gradients(geometry, wanted, x, weight, ones(geometry.output_shape))
        counts.append(counting.seen)
    block = weight_block(correlation(geometry), 4)
    blocks = -(-4 // block.items) * -(-geometry.output_size[0] // block.rows)
    assert counts[1] == 1 + blocks > 2
    assert counts[0] > 3 + blocks
