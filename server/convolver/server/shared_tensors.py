"""The tensors of one request that are in memory which the caller shares, and may write to at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convolver.core.dtypes import TABLE
from convolver.core.errors import Unsupported
from convolver.core.plan import Plan
from convolver.core.stack_plan import tensor_bytes
from convolver.core.tensors import from_bytes

if TYPE_CHECKING:
    from convolver.core.backends import Array
    from convolver.core.operation import Tensor
    from convolver.server.jobs import Job
    from convolver.server.regions import Registry
    from convolver.v1 import tensor_pb2


class SharedTensors:
    """Keeps what a request names mapped, be it that the caller lets go of it; `out` are the outputs that are written
    there. Raises what `Registry.view` raises, and Unsupported where no memory is shared.
    """

    def __init__(self, job: Job, registry: Registry | None) -> None:
        self._job, self._registry = job, registry
        self._views = {
            name: self._view(source.region, tensor, f"{name}_source.region")
            for name, (tensor, source) in job.tensors.items()
            if source.WhichOneof("source") == "region"
        }
        self._copies: dict[str, Array] = {}
        self.out: dict[str, Array] = {}
        for i, (region, (name, tensor)) in enumerate(zip(job.output_regions, job.plan.outputs.items(), strict=False)):
            view = self._view(region, tensor, f"output_regions[{i}]")
            self.out[name] = np.frombuffer(view, TABLE[tensor.dtype].numpy).reshape(tensor.shape)

    def array(self, _: tensor_pb2.SharedRegion, tensor: Tensor, name: str) -> Array:
        """A tensor, whose bytes are read once: where what computes reads it twice, or checks it first, this is a copy.
        Raises InvalidConvolution where a bool is neither 0 nor 1.
        """
        if name == "input" and _is_read_once(self._job):
            return from_bytes(self._views[name], tensor, name)
        if name not in self._copies:
            copy = np.frombuffer(self._views[name], np.uint8).copy()
            self._copies[name] = from_bytes(copy.data, tensor, name)
        return self._copies[name]

    def arrays(self) -> dict[str, Array]:
        """Each of them, as `array`."""
        sourced = self._job.tensors
        return {name: self.array(sourced[name].source.region, sourced[name].tensor, name) for name in self._views}

    def _view(self, region: tensor_pb2.SharedRegion, tensor: Tensor, field: str) -> memoryview:
        if self._registry is None:
            raise Unsupported(f"{field} is in shared memory, which this server does not offer")
        return self._registry.view(region, tensor_bytes(tensor), field)


def _is_read_once(job: Job) -> bool:
    """Whether what computes takes each element of the input as it comes."""
    plan = job.plan
    if not isinstance(plan, Plan) or plan.wanted or plan.algorithm != "direct":
        return False
    return TABLE[plan.input.dtype].kind in ("float", "complex")
