"""The torch back end on a CUDA device against the same torch code, host arrays in and out: python -m benchmarks.gpu.

Of the back end alone, without a server: what the transfers through pinned memory cost. Prints, and writes nothing.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from convolver.core.backends import available
from convolver.core.choose import choose
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Tensor
from convolver.core.parse import parse

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "torch:cuda:0"
ROUNDS = 30


class Case(NamedTuple):
    """A convolution in float32, "highest" precision."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    padding: int


CASES = {
    "feature map, 64 items": Case((64, 64, 56, 56), (64, 64, 3, 3), 1),
    "big": Case((4, 3, 1024, 1024), (8, 3, 3, 3), 0),
    "tiny": Case((1, 3, 32, 32), (16, 3, 3, 3), 0),
}


def calls_of(case: Case) -> dict[str, Callable[[], Any]]:
    """What is compared: each reads the same array and gives one in host memory."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, np.float32) for shape in (case.input, case.weight))
    [backend] = available(NAME, 1)
    parameters: Any = {"padding": case.padding}
    op = parse(Tensor("float32", case.input), Tensor("float32", case.weight), None, parameters)
    plan = choose(Geometry.of(op), Execution(backend=NAME, algorithm="direct"), [backend.capability])
    prepared, out = backend.prepare(plan, w, None), np.zeros(plan.output_shape, np.float32)
    kernels = torch.from_numpy(w).cuda()

    def local() -> object:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(torch.from_numpy(x).cuda(), kernels, padding=case.padding).cpu().numpy()

    return {
        "torch": local,
        "back end": lambda: backend.run(plan, prepared, x),
        "back end, out=": lambda: backend.run(plan, prepared, x, out),
    }


def main() -> None:
    """Medians in one run, in turns."""
    torch.backends.cudnn.allow_tf32 = False
    print(torch.cuda.get_device_name(0), f"torch {torch.__version__}")
    for title, case in CASES.items():
        calls = calls_of(case)
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(ROUNDS + 3):
            for name, call in calls.items():
                start = time.perf_counter()
                call()
                if turn >= 3:
                    seconds[name].append(time.perf_counter() - start)
        base = median(seconds["torch"])
        for name, found in seconds.items():
            print(f"{title:24} {name:16} {median(found) * 1e3:9.3f} ms  {median(found) / base:5.2f} of torch's")


if __name__ == "__main__":
    main()
