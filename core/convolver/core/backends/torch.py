"""The torch back end, on the CPU or a CUDA device: what goes to it, how it is told to compute, what comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit

from convolver.core import dtypes
from convolver.core.backends import (
    Array,
    LayerWeights,
    Outcome,
    Prepared,
    check_out,
    memory,
    stacks,
    torch_cuda,
    torch_fft,
)
from convolver.core.backends.activation_gradients import FLAT
from convolver.core.backends.arrays import canonical_weight, forward_weight
from convolver.core.backends.torch_arrays import bits, is_torchs, received, tensor
from convolver.core.backends.torch_failures import within_memory
from convolver.core.backends.torch_gradients import gradients
from convolver.core.backends.torch_pooling import pool, pool_gradient, rounded
from convolver.core.backends.torch_sums import Packed, canonical_input, convolved, in_layout, pack, padded, turned
from convolver.core.cancellation import checkpoint
from convolver.core.choose import Capability
from convolver.core.dtypes import DTypeName
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution, Operation
from convolver.core.packing import packs
from convolver.core.parameters import Activation
from convolver.core.plan import Plan
from convolver.core.stack_plan import StackPlan
from convolver.core.tiling import tiling

_SWITCHES = threading.Lock()
"""torch's switches are the whole process's: held over [set them, launch]."""

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
        self._staging = None if on_cpu else torch_cuda.Staging(self._device)
        properties: Any = None if on_cpu else torch.cuda.get_device_properties(self._device)
        self.capability = Capability(
            name=f"torch:{device}",
            device="cpu" if on_cpu else f"{device} {properties.name}",
            threads=threads if on_cpu else properties.multi_processor_count,
            memory_bytes=memory() if on_cpu else properties.total_memory,
            dtypes=frozenset(name for name, row in dtypes.TABLE.items() if not row.exact),
            algorithms=("direct", "fft"),
        )

    def prepare(self, plan: Plan, weight: Array, bias: Array | None, *, stays: bool = False) -> Prepared:
        """Both on the device, in the accumulator's type, the weight canonical and contiguous, or packed for oneDNN
        where it stays and that pays, or its spectra.
        """
        return within_memory(self._device, lambda: self._prepared(plan, weight, bias, stays=stays))

    def _prepared(self, plan: Plan, weight: Array, bias: Array | None, *, stays: bool) -> Prepared:
        canonical = canonical_weight(plan.operation, weight)
        on_device = None if bias is None else self._sent(plan, bias)
        if plan.algorithm == "direct":
            sent = self._sent(plan, np.ascontiguousarray(canonical))
            return Prepared(pack(plan.geometry, sent) if stays and packs(plan) else sent, on_device)
        forward = self._sent(plan, np.ascontiguousarray(forward_weight(plan.geometry, canonical)))
        with torch.inference_mode():
            return Prepared(torch_fft.spectra(tiling(plan.geometry), forward), on_device)

    def prepared_bytes(self, plan: Plan, prepared: Prepared) -> int:
        """Bytes that this form takes beside weight and bias themselves."""
        if isinstance(prepared.weight, Packed):
            return prepared.weight.bytes
        return stacks.prepared_bytes(plan, prepared, on_another_device=self._device.type != "cpu")

    def run(self, plan: Plan, prepared: Prepared, input: Array, out: Array | None = None) -> Outcome:
        """The convolution."""
        check_out(out, plan.output)
        if self._staging and (parts := torch_cuda.parts(plan)):
            overlapped = partial(self._overlapped, self._staging, plan, parts, prepared, input, out)
            return within_memory(self._device, overlapped)
        given, steps = (input, plan.input.dtype), _STEPS if out is None else _WRITTEN
        return self._timed(plan, [given], lambda x: {"output": stacks.convolved(steps, plan, prepared, x)}, out)

    def gradients(
        self, plan: Plan, wanted: Wanted, weight: Array | None, input: Array | None, grad_output: Array
    ) -> Outcome:
        """The gradients wanted."""
        given = [(input, plan.input.dtype), (grad_output, plan.output.dtype)]
        return self._timed(plan, given, lambda x, g: _gradients(plan.geometry, wanted, x, weight, g))

    def run_stack(
        self, plan: StackPlan, weights: Sequence[LayerWeights | None], input: Array, out: Array | None = None
    ) -> Outcome:
        """The stack's output."""
        check_out(out, plan.outputs["output"])
        nothing, given = stacks.of_an_empty_batch(plan, out), (input, plan.input.dtype)
        return nothing or self._timed(plan, [given], lambda x: stacks.run(_STEPS, plan, weights, x), out)

    def stack_gradients(
        self, plan: StackPlan, weights: Sequence[LayerWeights | None], input: Array, grad_output: Array
    ) -> Outcome:
        """The gradients that the plan's `outputs` lists."""
        nothing, given = stacks.of_an_empty_batch(plan), [(input, plan.input.dtype), (grad_output, plan.output.dtype)]
        return nothing or self._timed(plan, given, lambda x, g: stacks.gradients(_STEPS, plan, weights, x, g))

    def _overlapped(
        self,
        staging: torch_cuda.Staging,
        plan: Plan,
        parts: Sequence[tuple[slice, Plan]],
        prepared: Prepared,
        input: Array,
        out: Array | None,
    ) -> Outcome:
        """The convolution of items that travel while others are computed; that all counts as computing."""
        start, dtype = time.perf_counter(), plan.output.dtype
        direct = out is not None and out.flags.c_contiguous and is_torchs(out)
        made = out if out is not None and direct else np.empty(plan.output_shape, dtypes.TABLE[dtype].numpy)
        host, target = tensor(input, plan.input.dtype), bits(made, dtype)

        def computed(part: Plan, x: torch.Tensor) -> torch.Tensor:
            with self._switched(plan.execution), torch.inference_mode():
                y: torch.Tensor = stacks.convolved(_STEPS, part, prepared, x)
                return y

        work = (torch_cuda.Work(partial(computed, part), host[items], target[items]) for items, part in parts)
        torch_cuda.overlapped(staging, work)
        if out is not None and not direct:
            np.copyto(out, made)
        seconds = time.perf_counter() - start
        output = made if out is None else out
        return Outcome({"output": output}, {"copy_in": 0.0, "compute": seconds, "copy_out": 0.0})

    def _timed(
        self,
        plan: Plan | StackPlan,
        operands: Sequence[tuple[Array | None, DTypeName]],
        compute: Callable[..., dict[str, torch.Tensor]],
        out: Array | None = None,
    ) -> Outcome:
        """What `compute` makes of the operands on the device, which go there once and whose results come back once; the
        only one into `out`, where that is given.
        """
        return within_memory(self._device, lambda: self._timed_once(plan, operands, compute, out))

    def _timed_once(
        self,
        plan: Plan | StackPlan,
        operands: Sequence[tuple[Array | None, DTypeName]],
        compute: Callable[..., dict[str, torch.Tensor]],
        out: Array | None,
    ) -> Outcome:
        start = time.perf_counter()
        if self._device.type == "cpu":
            torch.set_num_threads(plan.threads)  # of this thread alone
        tensors = [None if array is None else self._on_device(tensor(array, dtype)) for array, dtype in operands]
        self._finish()
        sent = time.perf_counter()
        with self._switched(plan.execution), torch.inference_mode():
            checkpoint()  # what is launched runs to its end
            made = compute(*tensors)
        self._finish()
        computed = time.perf_counter()
        outputs = {name: received(made[name], dtype, out, self._staging) for name, (dtype, _) in plan.outputs.items()}
        copied_out = time.perf_counter() - computed
        return Outcome(outputs, {"copy_in": sent - start, "compute": computed - sent, "copy_out": copied_out})

    def _on_device(self, host: torch.Tensor) -> torch.Tensor:
        return self._staging.sent(host) if self._staging else host

    def _sent(self, plan: Plan, array: Array) -> torch.Tensor:
        op = plan.operation
        return tensor(array, op.dtype).to(self._device, getattr(torch, op.accumulator.name))

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


def _switches(execution: Execution) -> AbstractContextManager[None]:
    """CuDNN as the request wants it: no TF32 unless precision says so, no search for algorithms (a new shape would pay
    for it).
    """
    tf32 = execution.precision != "highest"
    deterministic = execution.deterministic
    return torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=deterministic, allow_tf32=tf32
    )


def _sums(plan: Plan, prepared: Prepared, x: torch.Tensor) -> torch.Tensor:
    if not x.is_cuda:
        torch.set_num_threads(plan.threads)
    x = canonical_input(plan.operation, x).to(getattr(torch, plan.operation.accumulator.name))
    if x.is_cuda:
        x = torch_cuda.for_tensor_cores(plan, x)
    return convolved(plan.geometry, x, prepared) if plan.algorithm == "direct" else _by_fft(plan, x, prepared)


def _by_fft(plan: Plan, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
    if not plan.geometry.output_batch:  # whose padding would take no memory, but whose tiles may be without number
        return x.new_empty(plan.geometry.canonical_output)
    tiles = tiling(plan.geometry)
    x, left = padded(tiles.geometry, x)
    if any(left):
        x = F.pad(x, [side for amount in reversed(left) for side in (amount, amount)])
    y = torch_fft.convolved(tiles, x, prepared.weight)
    return y if prepared.bias is None else y.add_(prepared.bias.reshape(-1, *(1,) * plan.geometry.ndim))


def _rounded(op: Operation, sums: torch.Tensor) -> torch.Tensor:
    return rounded(in_layout(op, sums), op.output_dtype)


def _gradients(
    geometry: Geometry, wanted: Wanted, x: torch.Tensor | None, weight: Array | None, g: torch.Tensor
) -> dict[str, torch.Tensor]:
    dtype = geometry.operation.dtype
    w = None if weight is None else tensor(weight, dtype).to(g.device)
    return {name: rounded(grad, dtype) for name, grad in gradients(geometry, wanted, x, w, g).items()}


def _activation_gradient(op: Operation, sums: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    """By torch's own function where it has a simple one, else by autograd, also in inference mode."""
    x, g, aten = in_layout(op, sums), grad.to(sums.dtype), torch.ops.aten
    if op.activation == "relu":
        return aten.threshold_backward(g, x, 0)  # type: ignore[no-any-return]  # a tensor
    if op.activation in ("sigmoid", "tanh"):
        y = _ACTIVATIONS[op.activation](x)
        return (aten.sigmoid_backward if op.activation == "sigmoid" else aten.tanh_backward)(g, y)  # type: ignore[no-any-return]  # a tensor
    with torch.inference_mode(mode=False), torch.enable_grad():
        leaf = x.clamp(-FLAT, FLAT).requires_grad_()
        [gradient] = torch.autograd.grad(_ACTIVATIONS[op.activation](leaf), leaf, g)
    return gradient


_STEPS = stacks.Steps(
    sums=_sums,
    saved=lambda sums: sums,  # activations make new tensors
    activated=lambda op, sums: _ACTIVATIONS[op.activation](sums),
    output=_rounded,
    gradients=_gradients,
    activation_gradient=_activation_gradient,
    pool=pool,
    pool_gradient=pool_gradient,
)

_WRITTEN = _STEPS._replace(output=turned)
"""For an output that is copied elsewhere: it is rounded and made contiguous on the way."""
