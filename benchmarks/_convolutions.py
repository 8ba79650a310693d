"""The workloads in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from convolver.client.bench import Workload

FUNCTIONS: dict[int, Callable[..., torch.Tensor]] = {
    3: torch.nn.functional.conv1d,
    4: torch.nn.functional.conv2d,
    5: torch.nn.functional.conv3d,
}
"""By the number of the input's axes."""


def convolution(workload: Workload, weight: torch.Tensor, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What takes an input of the host to its output there, with the weight on the device. No TF32: ours has none."""
    torch.backends.cudnn.allow_tf32 = False
    function, held = FUNCTIONS[len(workload.input)], weight.to(device)

    def run(image: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            output = function(
                image.to(device), held, padding=workload.padding, stride=workload.stride, groups=workload.groups
            )
            return output.cpu()

    return run
