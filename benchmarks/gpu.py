"""The torch back end on a CUDA device against the same torch code, host arrays in and out: python -m benchmarks.gpu.

Of the back end alone, without a server: what the transfers through pinned memory cost. Prints, and writes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks._convolutions import convolution
from benchmarks._measure import interleave, medians
from convolver.client.bench import WORKLOADS, Workload
from convolver.client.bench._service import tensors
from convolver.core.backends import available
from convolver.core.choose import choose
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution, Tensor
from convolver.core.parse import parse

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "torch:cuda:0"
ROUNDS = 30

CASES = (Workload("64 feature maps", (64, 64, 56, 56), (64, 64, 3, 3), padding=1), WORKLOADS["big"], WORKLOADS["tiny"])
"""In "highest" precision."""


def calls_of(case: Workload) -> dict[str, Callable[[], object]]:
    """What is compared: each reads the same array and gives one in host memory."""
    x, w = tensors(case)
    [backend] = available(NAME, 1)
    parameters: Any = {"padding": case.padding}
    op = parse(Tensor("float32", case.input), Tensor("float32", case.weight), None, parameters)
    plan = choose(Geometry.of(op), Execution(backend=NAME, algorithm="direct"), [backend.capability])
    prepared, out = backend.prepare(plan, w, None), np.zeros(plan.output_shape, np.float32)
    local = convolution(case, torch.from_numpy(w), "cuda")
    return {
        "torch": lambda: local(torch.from_numpy(x)),
        "back end": lambda: backend.run(plan, prepared, x),
        "back end, out=": lambda: backend.run(plan, prepared, x, out),
    }


def main() -> None:
    """Medians in one run, in turns."""
    print(torch.cuda.get_device_name(0), f"torch {torch.__version__}")
    for case in CASES:
        seconds = medians(interleave(calls_of(case), ROUNDS, warmup=3))
        for name, found in seconds.items():
            print(f"{case.name:24} {name:16} {found * 1e3:9.3f} ms  {found / seconds['torch']:5.2f} of torch's")


if __name__ == "__main__":
    main()
