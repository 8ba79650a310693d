"""What a CUDA device needs beside torch's own: transfers through pinned memory on streams of their own, batches whose
transfers overlap with what is computed, and the layout that tensor cores read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, cast

import torch

from convolver.core.cancellation import checked
from convolver.core.geometry import Geometry
from convolver.core.plan import Plan

CHUNK_BYTES = 4 << 20
"""Of one pinned buffer."""

CHUNKS = 8
"""Pinned buffers of a device: all that is ever pinned."""

MOST_HELD = 4
"""Buffers that one transfer takes of them."""

PART_BYTES = 32 << 20
"""Input and output of the items that are sent, computed and fetched together."""

TENSOR_CORE_CHANNELS = 4
"""Of which TF32's kernels for channels_last want multiples (NVIDIA, Convolutional Layers User's Guide)."""


class _Chunk(NamedTuple):
    """A pinned buffer, and what happens once the device has read or written it."""

    memory: torch.Tensor
    done: torch.cuda.Event


class Work(NamedTuple):
    """What is launched on the device for a tensor there, that tensor and where the result goes, both in host memory."""

    compute: Callable[[torch.Tensor], torch.Tensor]
    input: torch.Tensor
    output: torch.Tensor


class Staging:
    """Transfers between host memory and one device, by way of a bounded pool of pinned buffers. For any thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        stream, event = cast("Callable[..., Any]", torch.cuda.Stream), cast("Callable[[], Any]", torch.cuda.Event)
        self._inward, self._outward = stream(device), stream(device)
        self._idle: SimpleQueue[_Chunk] = SimpleQueue()
        for _ in range(CHUNKS):
            self._idle.put(_Chunk(torch.empty(CHUNK_BYTES, dtype=torch.uint8, pin_memory=True), event()))

    def sent(self, host: torch.Tensor) -> torch.Tensor:
        """A copy on the device, which what is launched from now on finds there; the host's may change at once."""
        with torch.cuda.stream(self._inward):
            made = torch.empty(host.shape, dtype=host.dtype, device=self._device)
        source, target = _bytes(host), _bytes(made)
        with self._held(len(source)) as chunks:
            for i, start in enumerate(range(0, len(source), CHUNK_BYTES)):
                memory, done = chunks[i % len(chunks)]
                part = source[start : start + CHUNK_BYTES]
                done.synchronize()
                memory[: len(part)].copy_(part)
                with torch.cuda.stream(self._inward):
                    target[start : start + len(part)].copy_(memory[: len(part)], non_blocking=True)
                done.record(self._inward)
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._inward)
        made.record_stream(current)  # its memory is the inward stream's, which must not have it back before
        return made

    def fetched(
        self, made: torch.Tensor, out: torch.Tensor | None = None, after: torch.cuda.Event | None = None
    ) -> torch.Tensor:
        """The device's tensor in host memory, in `out` where that is given: once `after` has happened, or else all that
        was launched.
        """
        host = torch.empty(made.shape, dtype=made.dtype) if out is None or not out.is_contiguous() else out
        source, target = _bytes(made), _bytes(host)
        copied = source.data_ptr() != made.data_ptr()
        launched = after if after and not copied else torch.cuda.current_stream(self._device).record_event()
        self._outward.wait_event(launched)
        source.record_stream(self._outward)
        with self._held(len(source)) as chunks:
            pending: deque[tuple[_Chunk, int]] = deque()
            for i, start in enumerate(range(0, len(source), CHUNK_BYTES)):
                if len(pending) == len(chunks):
                    _drain(*pending.popleft(), target)
                memory, done = chunk = chunks[i % len(chunks)]
                part = source[start : start + CHUNK_BYTES]
                done.synchronize()
                with torch.cuda.stream(self._outward):
                    memory[: len(part)].copy_(part, non_blocking=True)
                done.record(self._outward)
                pending.append((chunk, start))
            while pending:
                _drain(*pending.popleft(), target)
        return host if out is None or host is out else out.copy_(host)

    @contextmanager
    def _held(self, size: int) -> Iterator[list[_Chunk]]:
        """One buffer at least, for which it waits, and more where they are idle: so two transfers never wait for one
        another.
        """
        chunks = [self._idle.get()]
        try:
            while len(chunks) < min(MOST_HELD, -(-size // CHUNK_BYTES)):
                try:
                    chunks.append(self._idle.get_nowait())
                except Empty:
                    break
            yield chunks
        finally:
            for chunk in chunks:
                self._idle.put(chunk)


def overlapped(staging: Staging, work: Iterable[Work]) -> None:
    """All the work, each part of which is fetched while the next one is sent and computed."""
    waiting = None
    for compute, host, out in checked(work):
        made = compute(staging.sent(host))
        done = torch.cuda.current_stream(made.device).record_event()
        if waiting:
            staging.fetched(*waiting)
        waiting = made, out, done
    if waiting:
        staging.fetched(*waiting)


def parts(plan: Plan) -> list[tuple[slice, Plan]]:
    """Items that can be computed while others travel, with the plan of each part; none where that would not pay, or
    would change what the operation is. Not core.pieces': those are of other sizes, chosen anew, and may be rows; these
    keep what was chosen for the whole, and what a channel's packing or an integer's overflow does.
    """
    geometry, op = plan.geometry, plan.operation
    if plan.execution.deterministic or plan.algorithm != "direct" or op.batch_groups > 1 or not op.batched:
        return []
    moved = prod(plan.input.shape) * op.accumulator.itemsize + plan.output_bytes
    count = min(geometry.batch, moved // PART_BYTES)
    if count < 2:
        return []
    step = -(-geometry.batch // count)
    return [
        (slice(first, last), replace(plan, geometry=_of_items(geometry, last - first)))
        for first in range(0, geometry.batch, step)
        for last in [min(first + step, geometry.batch)]
    ]


def for_tensor_cores(plan: Plan, x: torch.Tensor) -> torch.Tensor:
    """The canonical input with its channels innermost in memory, where TF32's kernels want that."""
    geometry = plan.geometry
    channels = (geometry.channels_per_group, geometry.out_channels // plan.operation.groups)
    wanted = plan.execution.precision != "highest" and plan.operation.accumulator.name == "float32"
    if geometry.ndim != 2 or not wanted or any(n % TENSOR_CORE_CHANNELS for n in channels):
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _of_items(geometry: Geometry, items: int) -> Geometry:
    op = geometry.operation
    return Geometry.of(replace(op, input_shape=(items, *op.input_shape[1:])))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Its memory, in one dimension; a copy of it where it does not lie in one piece."""
    return tensor.contiguous().view(-1).view(torch.uint8)


def _drain(chunk: _Chunk, start: int, target: torch.Tensor) -> None:
    """Copies what the device has written into the buffer."""
    chunk.done.synchronize()
    part = target[start : start + CHUNK_BYTES]
    part.copy_(chunk.memory[: len(part)])
