"""How much the resident memory of a process grows while a convolution runs, measured in a process of its own.

What counts: everything that stands at one time while a back end prepares the weight and runs (the peak that Linux
keeps, VmHWM), with input, weight and bias, whose pages are all written to, and the whole of the output, over what was
resident before the input existed. What does not count, since it comes once and stays: the libraries' code and what
they keep from a small convolution of the same element type and direction (MKL's and OpenBLAS's buffers, oneDNN's
thread pool), which runs first. What oneDNN makes anew for each shape (code, reordered weights) counts.

The allocator returns what is freed at once: glibc would keep freed blocks of up to 32 MB, and count them where nothing
needs them.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tests.core.operations import Array, operation

from convolver.core.backends import Backend, available
from convolver.core.choose import choose
from convolver.core.dtypes import TABLE, DTypeName
from convolver.core.errors import IntegerOverflow
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Operation
from convolver.core.parameters import Algorithm
from convolver.core.plan import Plan

THREADS = 2

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
RETURNED_AT_ONCE = 128 << 10


class Meter:
    """A process that measures, one thing after the other."""

    def __init__(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _return_at_once)

    def growth(self, what: Callable[..., object], *arguments: Any) -> int:  # noqa: ANN401 - of any function
        """Bytes by which resident memory grows, at most, while `what(*arguments)` runs."""
        return self._pool.submit(_growth, what, *arguments).result()

    def convolution(self, backend: str, plan: Plan, *, largest: bool = False) -> int:
        """The same for a convolution on that back end, whose input has the type's largest number where `largest`."""
        return self._pool.submit(_of_convolution, backend, plan, largest).result()

    def close(self) -> None:
        """Ends the process."""
        self._pool.shutdown()


def plan_of(backend: str, op: Operation, algorithm: Algorithm = "direct") -> Plan:
    """The plan that is held against what happens."""
    return choose(Geometry.of(op), Execution(backend=backend, algorithm=algorithm), [_backend(backend).capability])


def written(size: int) -> None:
    """So many bytes are allocated, and each page of them written to."""
    np.empty(size, np.uint8).fill(1)


@cache
def _backend(name: str) -> Backend:
    return available(name, THREADS)[0]


def _return_at_once() -> None:
    libc = ctypes.CDLL(None)
    for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
        libc.mallopt(threshold, RETURNED_AT_ONCE)


def _growth(what: Callable[..., object], *arguments: Any) -> int:  # noqa: ANN401 - of any function
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    idle = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    what(*arguments)
    return _resident("VmHWM") - idle


def _resident(name: str) -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"\n{name}:")[2].split(maxsplit=1)[0])


def _of_convolution(backend: str, plan: Plan, largest: bool) -> int:  # noqa: FBT001 - of Meter.convolution
    op, chosen = plan.operation, _backend(backend)
    _warmed(backend, op.dtype, op.transposed, plan.algorithm)
    return _growth(_convolve, chosen, plan, largest)


@cache
def _warmed(backend: str, dtype: DTypeName, transposed: bool, algorithm: Algorithm) -> None:  # noqa: FBT001 - the field's own word
    op = operation((4, 32, 24, 24), (32, 32, 3, 3), dtype, transposed=transposed, overflow="wrap")
    _convolve(_backend(backend), plan_of(backend, op, algorithm), largest=False)


def _convolve(backend: Backend, plan: Plan, largest: bool) -> None:  # noqa: FBT001 - of Meter.convolution
    op = plan.operation
    x, weight = _ones(op.dtype, op.input_shape), _ones(op.dtype, op.weight_shape)
    bias = _ones(op.dtype, (op.out_channels,)) if op.has_bias else None
    if largest and TABLE[op.dtype].kind in ("int", "uint"):
        x.flat[0] = np.iinfo(x.dtype).max
    try:
        outcome = backend.run(plan, backend.prepare(plan, weight, bias), x)
    except IntegerOverflow:
        return
    outcome.output.fill(0)  # pages that only read as zeros are not resident


def _ones(dtype: DTypeName, shape: tuple[int, ...]) -> Array:
    return np.full(shape, 1, TABLE[dtype].numpy)
