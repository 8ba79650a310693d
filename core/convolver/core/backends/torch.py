"""The torch back end, on the CPU or a CUDA device: what goes to it, how it is told to compute, what comes back."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit

from convolver.core import dtypes
from convolver.core.backends import Array, Outcome, Prepared, memory, torch_fft
from convolver.core.backends.arrays import canonical_input, canonical_weight, forward_weight
from convolver.core.backends.torch_gradients import gradients
from convolver.core.backends.torch_sums import convolved, in_layout, padded
from convolver.core.choose import Capability
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution
from convolver.core.parameters import Activation
from convolver.core.plan import Plan
from convolver.core.tiling import tiling

_SWITCHES = threading.Lock()
"""torch's switches are the whole process's: held over [set them, launch]."""

_BITS = {"bfloat16": np.int16, "float8_e4m3fn": np.uint8, "float8_e5m2": np.uint8}
"""Types that NumPy and torch exchange only as bits."""

_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "elu": F.elu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),  # F.softplus is linear above 20
    "hardswish": F.hardswish,
}


def devices() -> list[str]:
    """The CPU, then each CUDA device."""
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


class TorchBackend:
    """Floats and complex numbers on one device; integers are the reference's (CUDA has no integer convolution)."""

    def __init__(self, device: str, threads: int) -> None:
        self._device = torch.device(device)
        on_cpu = self._device.type == "cpu"
        if on_cpu:
            torch.set_num_threads(threads)
        properties: Any = None if on_cpu else torch.cuda.get_device_properties(self._device)
        self.capability = Capability(
            name=f"torch:{device}",
            device="cpu" if on_cpu else f"{device} {properties.name}",
            threads=threads if on_cpu else properties.multi_processor_count,
            memory_bytes=memory() if on_cpu else properties.total_memory,
            dtypes=frozenset(name for name, row in dtypes.TABLE.items() if not row.exact),
            algorithms=("direct", "fft"),
        )

    def prepare(self, plan: Plan, weight: Array, bias: Array | None) -> Prepared:
        """Both on the device, in the accumulator's type, the weight canonical and contiguous, or its spectra."""
        canonical = canonical_weight(plan.operation, weight)
        on_device = None if bias is None else self._sent(plan, bias)
        if plan.algorithm == "direct":
            return Prepared(self._sent(plan, np.ascontiguousarray(canonical)), on_device)
        forward = self._sent(plan, np.ascontiguousarray(forward_weight(plan.geometry, canonical)))
        with torch.inference_mode():
            return Prepared(torch_fft.spectra(tiling(plan.geometry), forward), on_device)

    def run(self, plan: Plan, prepared: Prepared, input: Array) -> Outcome:
        """The convolution."""
        start = time.perf_counter()
        x = self._sent(plan, canonical_input(plan.operation, input))
        self._finish()
        sent = time.perf_counter()
        with self._switched(plan.execution), torch.inference_mode():
            y = convolved(plan.geometry, x, prepared) if plan.algorithm == "direct" else _by_fft(plan, x, prepared)
        y = in_layout(plan.operation, _ACTIVATIONS[plan.operation.activation](y))
        self._finish()
        computed = time.perf_counter()
        outputs = {"output": _received(y, plan.operation.output_dtype)}
        copied_out = time.perf_counter() - computed
        return Outcome(outputs, {"copy_in": sent - start, "compute": computed - sent, "copy_out": copied_out})

    def gradients(
        self, plan: Plan, wanted: Wanted, weight: Array | None, input: Array | None, grad_output: Array
    ) -> Outcome:
        """The gradients wanted."""
        start = time.perf_counter()
        op = plan.operation
        x, w = (None if array is None else _tensor(array, op.dtype).to(self._device) for array in (input, weight))
        g = _tensor(grad_output, op.output_dtype).to(self._device)
        self._finish()
        sent = time.perf_counter()
        with self._switched(plan.execution):
            grads = gradients(plan.geometry, wanted, x, w, g)
        self._finish()
        computed = time.perf_counter()
        outputs = {name: _received(grads[name], dtype) for name, (dtype, _) in plan.outputs.items()}
        copied_out = time.perf_counter() - computed
        return Outcome(outputs, {"copy_in": sent - start, "compute": computed - sent, "copy_out": copied_out})

    def _sent(self, plan: Plan, array: Array) -> torch.Tensor:
        op = plan.operation
        return _tensor(array, op.dtype).to(self._device, getattr(torch, op.accumulator.name))

    @contextmanager
    def _switched(self, execution: Execution) -> Iterator[None]:
        """The switches as the request wants them; they are CUDA's alone, so the CPU waits for nobody."""
        if self._device.type == "cpu":
            yield
            return
        with _SWITCHES, _switches(execution):
            yield

    def _finish(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _tensor(array: Array, dtype: str) -> torch.Tensor:
    """The array's memory as a tensor; copied where torch cannot have it: in the other byte order, read backwards, or
    not aligned (torch 2.13 reads complex128 so that the process ends with a general protection fault).
    """
    native = array.astype(dtypes.TABLE[dtype].numpy, copy=False)
    astray = native.__array_interface__["data"][0] % native.itemsize
    if astray or any(stride < 0 for stride in native.strides):
        native = native.copy()
    native = native if dtype not in _BITS else native.view(_BITS[dtype])
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "The given NumPy array is not writable"
        )  # inputs from the wire are not, and are never written to
        tensor = torch.from_numpy(native)
    return tensor if dtype not in _BITS else tensor.view(getattr(torch, dtype))


def _received(y: torch.Tensor, dtype: dtypes.DTypeName) -> Array:
    """The tensor in host memory, rounded once to `dtype`. float8 rounds as ml_dtypes does: torch makes 448 of what
    e4m3fn cannot hold.
    """
    row = dtypes.TABLE[dtype]
    if dtype in _BITS:
        with np.errstate(all="ignore"):
            return y.cpu().numpy().astype(row.numpy)
    array: Array = y.to(getattr(torch, dtype)).cpu().numpy()
    return array


def _switches(execution: Execution) -> AbstractContextManager[None]:
    """CuDNN as the request wants it: no TF32 unless precision says so, no search for algorithms (a new shape would pay
    for it).
    """
    tf32 = execution.precision != "highest"
    deterministic = execution.deterministic
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=deterministic, allow_tf32=tf32
    )


def _by_fft(plan: Plan, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
    if not plan.geometry.output_batch:  # whose padding would take no memory, but whose tiles may be without number
        return x.new_empty(plan.geometry.canonical_output)
    tiles = tiling(plan.geometry)
    x, left = padded(tiles.geometry, x)
    if any(left):
        x = F.pad(x, [side for amount in reversed(left) for side in (amount, amount)])
    y = torch_fft.convolved(tiles, x, prepared.weight)
    return y if prepared.bias is None else y.add_(prepared.bias.reshape(-1, *(1,) * plan.geometry.ndim))
