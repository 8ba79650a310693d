"""The back ends: each runs a Plan on arrays, on one device. They are imported when they are used."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

from convolver.core.choose import Capability
from convolver.core.dtypes import TABLE
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.plan import Plan
from convolver.core.stack_plan import StackPlan

Array = NDArray[Any]
Index = tuple[Any, ...]


def last(*slices: slice) -> Index:
    """The index of a block in an array's last dimensions."""
    return (..., *slices)


class Outcome(NamedTuple):
    """What a run gave: the arrays that the plan's `outputs` lists, and seconds by phase: copy_in, compute, copy_out."""

    outputs: dict[str, Array]
    seconds: dict[str, float]

    @property
    def output(self) -> Array:
        """The output, in the operation's layout and output_dtype."""
        return self.outputs["output"]


class Prepared(NamedTuple):
    """Weight and bias as a back end wants them; what they are is its own affair."""

    weight: Any
    bias: Any


class LayerWeights(NamedTuple):
    """Weight and bias of a stack's convolution, in the operation's layout, and what gives them in the form that a back
    end's `run` wants: `Backend.prepare`, or whoever keeps what that has made.
    """

    weight: Array
    bias: Array | None
    prepared: Callable[[Plan], Prepared]


class Smeared(ArithmeticError):
    """A Fourier transform was given NaN or infinity, or passed its type's range, and has spread it over its output."""


class Backend(Protocol):
    """One back end on one device. Inputs are never written to.

    Whatever computes raises Cancelled where the thread's Stop is set (core/cancellation.py), and MemoryError where
    memory is not to be had; the next call is as good as ever.
    """

    @property
    def capability(self) -> Capability:
        """What it can do."""

    def prepare(self, plan: Plan, weight: Array, bias: Array | None, *, stays: bool = False) -> Prepared:
        """Weight and bias, in the operation's layout, brought into the form that `run` wants: of a layer that stays,
        what pays over many runs.
        """

    def prepared_bytes(self, plan: Plan, prepared: Prepared) -> int:
        """Bytes that this form takes beside weight and bias themselves: 0 where it is a view of them."""

    def run(self, plan: Plan, prepared: Prepared, input: Array, out: Array | None = None) -> Outcome:
        """The convolution. Where `out` is given, an array of the output's shape and dtype, it is written there, and
        `outputs["output"] is out`.

        Raises:
            IntegerOverflow: an integer result does not fit.
            Smeared: the plan's algorithm is "fft" and the operands do not allow it.
        """

    def gradients(
        self, plan: Plan, wanted: Wanted, weight: Array | None, input: Array | None, grad_output: Array
    ) -> Outcome:
        """The gradients wanted. Only that of the weight reads the input, and only that of the input the weight."""

    def run_stack(
        self, plan: StackPlan, weights: Sequence[LayerWeights | None], input: Array, out: Array | None = None
    ) -> Outcome:
        """The stack's output, in `out` as of `run`; `weights` has None for pooling.

        Raises:
            IntegerOverflow: an integer result of a layer, which is named, does not fit.
            Smeared: a layer's algorithm is "fft" and its operands do not allow it.
        """

    def stack_gradients(
        self, plan: StackPlan, weights: Sequence[LayerWeights | None], input: Array, grad_output: Array
    ) -> Outcome:
        """The gradients that the plan's `outputs` lists."""


def check_out(out: Array | None, output: Tensor) -> None:
    """Raises ValueError where `out` is not an array for this output: the caller has planned it, so it is a mistake in
    the program.
    """
    if out is not None and (out.shape != output.shape or out.dtype != TABLE[output.dtype].numpy):
        raise ValueError(f"out is {out.shape} of {out.dtype}, the output {output.shape} of {output.dtype}")


def available(name: str, threads: int) -> list[Backend]:
    """The back ends that `name` ("auto", "reference", "torch", "torch:cpu"...) stands for on this machine, reference
    first.

    Raises ImportError where torch is asked for by name and is not installed.
    """
    from convolver.core.backends.reference import ReferenceBackend

    backends: list[Backend] = [ReferenceBackend(threads)] if name in ("auto", "reference") else []
    if name != "reference":
        backends += _torch_backends(name, threads)
    return backends


def _torch_backends(name: str, threads: int) -> list[Backend]:
    try:
        from convolver.core.backends.torch import TorchBackend, devices
    except ImportError:
        if name == "auto":
            return []
        raise
    everything = [TorchBackend(device, threads) for device in devices()]
    return [backend for backend in everything if backend.capability.answers_to(name)]


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
