"""Transfers to a device in chunks, with one that is made of host memory: that all bytes arrive, whatever the sizes, and
that no buffer is lost. tests/gpu has the real thing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from tests.core.operations import operation

from convolver.core.choose import Capability, choose
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution
from convolver.core.plan import Plan

pytestmark = pytest.mark.skipif(not find_spec("torch"), reason="no torch")


@pytest.fixture
def staging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A Staging whose device, streams and events are the CPU, with buffers of 16 bytes."""
    import torch

    from convolver.core.backends import torch_cuda

    empty = torch.empty

    def unpinned(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:  # noqa: ANN401, ARG001 - of torch.empty
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch_cuda, "CHUNK_BYTES", 16)
    monkeypatch.setattr(torch.cuda, "Stream", MagicMock())
    monkeypatch.setattr(torch.cuda, "Event", MagicMock())
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch, "empty", unpinned)
    made = torch_cuda.Staging(torch.device("cpu"))
    yield made
    assert made._idle.qsize() == torch_cuda.CHUNKS  # noqa: SLF001 - all have been given back


@pytest.mark.parametrize("length", [0, 1, 4, 5, 16, 99, 1000])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "complex128", "bool"])
def test_all_bytes_arrive(staging: Any, length: int, dtype: str) -> None:  # noqa: ANN401 - a Staging
    import torch

    given = torch.randn(length, 3).to(getattr(torch, dtype))
    there = staging.sent(given)
    back = staging.fetched(there)
    assert there.data_ptr() != given.data_ptr() or not length
    assert back.dtype == given.dtype
    assert torch.equal(back.view(torch.uint8), given.view(torch.uint8))


def test_tensors_with_gaps_are_sent_and_written_to(staging: Any) -> None:  # noqa: ANN401 - a Staging
    import torch

    given, out = torch.arange(60.0).reshape(6, 10)[:, ::2], torch.zeros(6, 10)
    assert torch.equal(staging.sent(given), given)
    written = staging.fetched(given.t().t(), out[:, 1::2])
    assert torch.equal(written, given)
    assert torch.equal(out[:, 1::2], given)
    assert not out[:, ::2].any()


def test_buffers_come_back_from_a_transfer_that_fails(staging: Any) -> None:  # noqa: ANN401 - a Staging
    with pytest.raises(RuntimeError), staging._held(100):  # noqa: SLF001 - what each transfer holds
        raise RuntimeError


def test_parts_are_fetched_one_after_the_next_was_computed(staging: Any) -> None:  # noqa: ANN401 - a Staging
    import torch

    from convolver.core.backends import torch_cuda

    events: list[str] = []
    x, out = torch.arange(12.0).reshape(3, 4), torch.zeros(3, 4)

    def compute(there: torch.Tensor) -> torch.Tensor:
        events.append(f"compute, of which {int(out.any(1).sum())} are here")
        return there + 1

    torch_cuda.overlapped(staging, [torch_cuda.Work(compute, x[i], out[i]) for i in range(3)])
    assert torch.equal(out, x + 1)
    assert events == [f"compute, of which {i} are here" for i in (0, 0, 1)]
    torch_cuda.overlapped(staging, [])


def plan_of(batch: int, **given: Any) -> Plan:  # noqa: ANN401 - of Execution and parameters
    execution = {name: given.pop(name) for name in ("deterministic", "precision", "algorithm") if name in given}
    gpu = Capability("torch:cuda:0", "", 8, 1 << 30, frozenset({"float32"}), ("direct", "fft"))
    op = operation((batch, 4, 1024, 1024), (8, 4, 3, 3), **given)
    return choose(Geometry.of(op), Execution(**{"algorithm": "direct", **execution}), [gpu])


def test_batches_are_parted_and_together_the_whole() -> None:
    from convolver.core.backends import torch_cuda

    plan = plan_of(7)
    made = torch_cuda.parts(plan)
    assert [items.start for items, _ in made] == [0, 1, 2, 3, 4, 5, 6]
    assert {part.operation.input_shape[0] for _, part in made} == {1}
    assert made[-1][0].stop == 7
    assert sum(part.macs for _, part in made) == plan.macs


def test_what_is_small_or_must_stay_whole_is_not_parted() -> None:
    from convolver.core.backends import torch_cuda

    whole = [
        plan_of(1),
        plan_of(4, deterministic=True),
        plan_of(4, batch_groups=2),
        plan_of(0),
        plan_of(4, algorithm="fft"),
    ]
    assert [torch_cuda.parts(plan) for plan in whole] == [[]] * len(whole)


def test_only_tf32_wants_channels_innermost() -> None:
    import torch

    from convolver.core.backends.torch_cuda import for_tensor_cores

    x, high = torch.zeros(1, 4, 8, 8), plan_of(1, precision="high")
    assert for_tensor_cores(high, x).is_contiguous(memory_format=torch.channels_last)
    odd = replace(high, geometry=replace(high.geometry, in_channels=3))
    for plan in (odd, plan_of(1, precision="highest")):
        assert for_tensor_cores(plan, x) is x
    np.testing.assert_array_equal(for_tensor_cores(high, x + 1).numpy(), 1)
