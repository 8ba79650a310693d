"""A back end that gets no memory says so as Python does, and computes what comes next."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest
from tests.core.operations import BACKENDS

PRELUDE = """
import resource
import numpy as np
from pathlib import Path
from convolver.core.backends import available
from convolver.core.choose import choose
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution
from convolver.core.operation import Tensor
from convolver.core.parse import parse

name = {name!r}
backend = available(name, 1)[0]

def made(size, kernel, algorithm="direct", wanted=None, dtype="float32"):
    shape, weight = (1, 8, *size), np.ones((8, 8, *kernel), dtype)
    geometry = Geometry.of(parse(Tensor(dtype, shape), Tensor(dtype, weight.shape), None, {}))
    plan = choose(geometry, Execution(backend=name, algorithm=algorithm), [backend.capability], None, wanted)
    x = np.broadcast_to(np.ones(1, dtype), shape)
    if wanted:
        g = np.broadcast_to(np.ones(1, dtype), geometry.output_shape)
        return lambda: backend.gradients(plan, wanted, weight, x, g).outputs["grad_input"]
    return lambda: backend.run(plan, backend.prepare(plan, weight, None), x).output

for words in {ways!r}:
    small = made((60, 60), (5, 5), **words)
    expected = small()
    large = made((40000, 40000), (5, 5), **words)
    held = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (held + (1 << 29), resource.RLIM_INFINITY))
    try:
        large()
    except MemoryError as error:
        assert "allocate" in str(error), error
        assert error.__context__ is None, repr(error.__context__)
    else:
        raise AssertionError("40 GB were to be had")
    np.testing.assert_array_equal(small(), expected)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""

WAYS: list[dict[str, Any]] = [{}, {"dtype": "float64"}, {"algorithm": "fft"}]


@pytest.mark.parametrize("name", BACKENDS)
def test_it_is_a_memory_error_and_the_next_small_call_works(name: str) -> None:
    ways = [*map(repr, WAYS), "{'wanted': Wanted(input=True, weight=True, bias=True)}"]
    script = PRELUDE.replace("{name!r}", repr(name)).replace("{ways!r}", f"[{', '.join(ways)}]")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not find_spec("torch"), reason="no torch")
def test_cuda_tries_once_more_without_what_it_keeps_and_then_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from convolver.core.backends.torch_failures import within_memory

    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: events.append("emptied"))

    def lacking() -> None:
        events.append("tried")
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(MemoryError, match=r"Tried to allocate 20\.00 GiB"):
        within_memory(torch.device("cuda"), lacking)
    assert events[:3] == ["tried", "emptied", "tried"]
    assert events.count("tried") == 2
    events.clear()
    with pytest.raises(MemoryError):
        within_memory(torch.device("cpu"), lacking)
    assert events.count("tried") == 1


@pytest.mark.skipif(not find_spec("torch"), reason="no torch")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_other_errors_of_torch_stay_what_they_are(device: str) -> None:
    import torch

    from convolver.core.backends.torch_failures import within_memory

    calls: list[None] = []

    def fail() -> None:
        calls.append(None)
        raise RuntimeError("could not create a primitive")

    with pytest.raises(RuntimeError, match="could not create a primitive"):
        within_memory(torch.device(device), fail)
    assert len(calls) == 1


@pytest.mark.skipif(not find_spec("torch"), reason="no torch")
def test_what_succeeds_the_second_time_counts() -> None:
    import torch

    from convolver.core.backends.torch_failures import within_memory

    answers = iter([None, 42])

    def attempt() -> int:
        found = next(answers)
        if found is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    assert within_memory(torch.device("cuda"), attempt) == 42
