"""Threads that share a sum: every block is summed once, by as many as are free, with the bits that one thread gives."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.core.operations import operation

from convolver.core import methods
from convolver.core.backends import available
from convolver.core.backends import threads as threads_module
from convolver.core.backends.threads import Crew
from convolver.core.choose import choose
from convolver.core.cost import threads_that_pay
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution

WAIT = 30.0
BACKEND = available("reference", 3)[0]

T: dict[str, Any] = {"transposed": True, "stride": 2}
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], DTypeName, dict[str, Any]]] = {
    "columns": ((1, 24, 30, 33), (24, 24, 3, 3), "float32", {}),
    "columns of several items": ((5, 8, 9, 9), (20, 4, 3, 3), "float32", {"groups": 2, "padding": 1}),
    "shifted": ((1, 3, 40, 37), (4, 3, 3, 3), "float32", {"padding": 1}),
    "a signal": ((1, 4, 5000), (7, 4, 9), "float32", {}),
    "ordered": ((1, 1, 61, 67), (1, 1, 3, 3), "float64", {}),
    "ordered, in groups": ((2, 5, 20, 20), (5, 1, 3, 3), "float64", {"groups": 5}),
    "one element": ((1, 8, 31, 31), (5, 8, 1, 1), "float32", {}),
    "one element, items": ((4, 8, 7, 7), (6, 4, 1, 1), "float32", {"groups": 2}),
    "spanning": ((7, 6, 4, 4), (10, 6, 4, 4), "float32", {}),
    "transposed": ((1, 4, 20, 20), (4, 6, 3, 3), "float32", T),
    "transposed, items": ((6, 4, 9, 9), (4, 3, 3, 3), "float32", {**T, "groups": 2}),
    "integers": ((1, 6, 30, 30), (8, 6, 3, 3), "int8", {"output_dtype": "int32"}),
    "integers of 64 bits": ((1, 2, 20, 20), (3, 2, 3, 3), "int64", {}),
    "complex": ((1, 4, 20, 20), (3, 4, 3, 3), "complex64", {}),
    "batch groups": ((4, 3, 12, 12), (6, 3, 3, 3), "float32", {"batch_groups": 2}),
}


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads of our own, as where NumPy was told to have one."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    threads_module.crew.cache_clear()
    yield
    threads_module.crew.cache_clear()


def whole_numbers(dtype: DTypeName, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Numbers whose sums are exact in every type and order."""
    return np.random.default_rng(len(shape)).integers(-5, 6, shape).astype(TABLE[dtype].numpy)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.usefixtures("crews")
def test_several_threads_give_what_one_gives(name: str, count: int) -> None:
    input_shape, weight_shape, dtype, parameters = SHAPES[name]
    op = operation(input_shape, weight_shape, dtype, **parameters)
    plan = choose(Geometry.of(op), Execution(backend="reference", algorithm="direct"), [BACKEND.capability])
    x, weight = whole_numbers(dtype, input_shape), whole_numbers(dtype, weight_shape)
    prepared = BACKEND.prepare(plan, weight, None)
    alone, together = (BACKEND.run(replace(plan, threads=n), prepared, x).output for n in (1, count))
    np.testing.assert_array_equal(together, alone)
    assert alone.any()


def test_each_block_is_worked_on_once() -> None:
    done: list[int] = []
    Crew(4).share(range(1000), done.extend)
    assert sorted(done) == list(range(1000))


def test_blocks_are_worked_on_at_the_same_time() -> None:
    meeting = threading.Barrier(3)

    def meet(blocks: Iterator[int]) -> None:
        for _ in blocks:
            meeting.wait(WAIT)

    Crew(3).share(range(3), meet)


def test_who_comes_while_others_compute_computes_alone_and_does_not_wait() -> None:
    crew, begun, may_end = Crew(2), threading.Barrier(3), threading.Event()

    def hold(blocks: Iterator[int]) -> None:
        for _ in blocks:
            begun.wait(WAIT)
            assert may_end.wait(WAIT)

    names: set[str] = set()
    with ThreadPoolExecutor(1) as others:
        first = others.submit(crew.share, range(2), hold)
        begun.wait(WAIT)
        crew.share(range(8), lambda blocks: names.update(threading.current_thread().name for _ in blocks))
        may_end.set()
        first.result(WAIT)
    assert names == {threading.current_thread().name}


def test_two_callers_together_have_no_more_threads_than_one() -> None:
    crew, begun, may_end, meeting = Crew(3), threading.Barrier(3), threading.Event(), threading.Barrier(2)
    met, patience = list[int](), 0.2

    def hold(blocks: Iterator[int]) -> None:
        for _ in blocks:
            begun.wait(WAIT)
            assert may_end.wait(WAIT)

    def meet(blocks: Iterator[int]) -> None:
        for block in blocks:
            with suppress(threading.BrokenBarrierError):
                meeting.wait(patience)
                met.append(block)

    with ThreadPoolExecutor(1) as others:
        first = others.submit(crew.share, range(2), hold)  # the caller and one of two helpers
        begun.wait(WAIT)
        crew.share(range(2), meet)
        may_end.set()
        first.result(WAIT)
    assert not met
    meeting.reset()
    patience = WAIT
    crew.share(range(2), meet)
    assert sorted(met) == [0, 1]


def test_a_crew_is_whole_again_after_each_sum_and_each_error() -> None:
    crew = Crew(2)

    def fail(blocks: Iterator[int]) -> None:
        for block in blocks:
            raise MemoryError(block)

    for _ in range(50):
        with pytest.raises(MemoryError):
            crew.share(range(2), fail)
        crew.share(range(2), list[int]().extend)
    meeting = threading.Barrier(2)

    def meet(blocks: Iterator[int]) -> None:
        for _ in blocks:
            meeting.wait(WAIT)

    crew.share(range(2), meet)


def test_an_error_in_a_helper_reaches_the_caller() -> None:
    caller, meeting = threading.current_thread(), threading.Barrier(2)

    def fail_elsewhere(blocks: Iterator[int]) -> None:
        for _ in blocks:
            meeting.wait(WAIT)
            if threading.current_thread() is not caller:
                raise MemoryError

    with pytest.raises(MemoryError):
        Crew(2).share(range(2), fail_elsewhere)


def test_the_caller_waits_for_all_that_work_when_one_has_failed() -> None:
    meeting, may_end, ended = threading.Barrier(3), threading.Event(), threading.Event()

    def work(blocks: Iterator[int]) -> None:
        for _ in blocks:
            meeting.wait(WAIT)
            if threading.current_thread().name == "sums_0":
                raise MemoryError
            if threading.current_thread().name == "sums_1":
                assert may_end.wait(WAIT)
                ended.set()

    with ThreadPoolExecutor(1) as others:
        sharing = others.submit(Crew(3).share, range(3), work)
        threading.Timer(0.2, may_end.set).start()
        assert isinstance(sharing.exception(WAIT), MemoryError)
        assert ended.is_set()


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_where_no_thread_can_be_had_the_caller_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    crew, done = Crew(2), list[int]()
    monkeypatch.setattr(threading.Thread, "start", no_thread)
    for _ in range(2):
        crew.share(range(3), done.extend)
    assert done == [0, 1, 2, 0, 1, 2]


def test_what_waited_for_a_thread_in_vain_is_not_begun_later(monkeypatch: pytest.MonkeyPatch) -> None:
    crew, begun, may_end, names = Crew(4), threading.Barrier(3), threading.Event(), list[str]()

    def hold(blocks: Iterator[int]) -> None:
        for _ in blocks:
            begun.wait(WAIT)
            assert may_end.wait(WAIT)

    def work(blocks: Iterator[int]) -> None:
        names.extend(threading.current_thread().name for _ in [None, *blocks])

    with ThreadPoolExecutor(1) as others:
        first = others.submit(crew.share, range(2), hold)
        begun.wait(WAIT)  # its helper is busy, and another would be a new thread
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            crew.share(range(2), work)
        may_end.set()
        first.result(WAIT)
    crew._pool.shutdown()  # noqa: SLF001 - once its threads have seen what is in its queue
    assert set(names) == {threading.current_thread().name}


def test_helpers_are_silent_about_overflow() -> None:
    meeting = threading.Barrier(2)

    def overflow(blocks: Iterator[int]) -> None:
        for _ in blocks:
            meeting.wait(WAIT)
            np.float32(3e38) * np.full(9, 3e38, np.float32)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error")
        Crew(2).share(range(2), overflow)


@pytest.mark.parametrize(
    ("variables", "size"),
    [
        ({"OPENBLAS_NUM_THREADS": "1"}, 3),
        ({"OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1"}, 3),
        ({}, 1),
    ],
)
def test_sums_are_shared_where_numpy_was_told_to_have_one_thread(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], size: int
) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    threads_module.crew.cache_clear()
    assert threads_module.crew(3).size == size
    threads_module.crew.cache_clear()


def test_large_sums_have_all_threads_and_small_ones_transforms_and_gradients_one() -> None:
    large, small = (Geometry.of(operation((1, 64, size, size), (64, 64, 3, 3), padding=1)) for size in (112, 14))
    assert threads_that_pay(large, "reference", 8, "direct") == 8
    assert threads_that_pay(small, "reference", 8, "direct") == 1
    assert threads_that_pay(large, "reference", 8, "fft") == 1
    assert threads_that_pay(large, "reference", 8, "direct", Wanted(input=True, weight=True, bias=True)) == 1


@pytest.mark.parametrize("threads", [2, 3, 5, 16])
def test_no_thread_has_a_third_more_rows_than_its_share(threads: int) -> None:
    geometry = Geometry.of(operation((1, 64, 56, 56), (64, 64, 3, 3), padding=1))
    rows = methods.columns(geometry, 4, threads).block.rows
    blocks = -(-56 // rows)
    assert -(-blocks // threads) * rows <= 56 / threads * 4 / 3


def test_each_threads_columns_are_planned() -> None:
    geometry = Geometry.of(operation((1, 64, 56, 4096), (64, 64, 3, 3), padding=1))
    row = 4 * 64 * 9 * 4096
    assert methods.workspace_bytes(geometry, 4) - methods.workspace_bytes(geometry) == 3 * row
