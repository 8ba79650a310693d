"""What will run of a stack and what it costs: a plan for each layer, all on one back end, so that what goes from layer
to layer stays on its device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod

from convolver.core import gradients
from convolver.core.dtypes import TABLE
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution, Tensor
from convolver.core.parameters import Overflow
from convolver.core.plan import ChosenAlgorithm, Plan
from convolver.core.pooling import Pooling
from convolver.core.receptive import ReceptiveField, receptive_fields
from convolver.core.stack import Step


@dataclass(frozen=True, slots=True)
class PoolingPlan:
    """One pooling on one back end. `work` is in elements read, `workspace_bytes` beside input and output."""

    pooling: Pooling
    backend: str
    threads: int
    workspace_bytes: int

    @property
    def input(self) -> Tensor:
        """The input's header."""
        return self.pooling.input

    @property
    def output(self) -> Tensor:
        """The output's header."""
        return self.pooling.output

    @property
    def algorithm(self) -> ChosenAlgorithm:
        """There is but one."""
        return "direct"

    @property
    def parameter_count(self) -> int:
        """There are no weights: 0."""
        return 0

    @property
    def macs(self) -> int:
        """There are no products: 0."""
        return 0

    @property
    def work(self) -> int:
        """Elements that the windows read."""
        return self.pooling.work


LayerPlan = Plan | PoolingPlan


def step_of(layer: LayerPlan) -> Step:
    """What the layer is, without its back end."""
    return layer.geometry if isinstance(layer, Plan) else layer.pooling


@dataclass(frozen=True)
class StackPlan:
    """A stack on one back end. `layers` are the plans of the layers as they run forward; `wanted` are the gradients
    that are computed in place of the output, if any, `weight` and `bias` for each convolution. `workspace_bytes` counts
    what is allocated beside input, weights and answer, what goes from layer to layer included.
    """

    layers: tuple[LayerPlan, ...]
    execution: Execution
    work: int
    workspace_bytes: int
    wanted: Wanted | None = None

    @property
    def backend(self) -> str:
        """Who runs it."""
        return self.layers[0].backend

    @property
    def threads(self) -> int:
        """The most that a layer uses."""
        return max(layer.threads for layer in self.layers)

    @property
    def dtype(self) -> str:
        """The type of the input, and of all that goes from layer to layer."""
        return self.input.dtype

    @property
    def ndim(self) -> int:
        """Spatial dimensions."""
        return step_of(self.layers[0]).ndim

    @property
    def overflow(self) -> Overflow:
        """What happens to integer results that do not fit."""
        return next((layer.operation.overflow for layer in self.layers if isinstance(layer, Plan)), "error")

    @property
    def input(self) -> Tensor:
        """The stack's input."""
        return self.layers[0].input

    @property
    def output(self) -> Tensor:
        """The last layer's output; where gradients are wanted, the header of grad_output."""
        return self.layers[-1].output

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The last layer's output's shape."""
        return self.output.shape

    @property
    def convolutions(self) -> tuple[tuple[int, Plan], ...]:
        """The convolutions among the layers, with their indices."""
        return tuple((i, layer) for i, layer in enumerate(self.layers) if isinstance(layer, Plan))

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """Names and headers of the answer's tensors, in their order: "output", or the gradients that are wanted, of
        "grad_input", "layers[0].grad_weight", "layers[0].grad_bias"...
        """
        return dict(self._gradients()) if self.wanted else {"output": self.output}

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        if self.wanted and self.wanted.input:
            yield "grad_input", self.input
        for i, layer in self.convolutions:
            wanted = self.wanted_of(i)
            for name, header in gradients.outputs(layer.geometry, wanted) if wanted else ():
                if name != "grad_input":
                    yield f"layers[{i}].{name}", header

    def wanted_of(self, i: int) -> Wanted | None:
        """The gradients that layer i computes: those that were asked for, and that of its input where a layer before it
        needs it (pooling has no other). None where nothing does.
        """
        asked = self.wanted
        if asked is None:
            return None
        before = (asked.weight or asked.bias) and any(isinstance(layer, Plan) for layer in self.layers[:i])
        own = isinstance(self.layers[i], Plan)
        needed = (asked.input or before, asked.weight and own, asked.bias and own)
        return Wanted(*needed) if any(needed) else None

    @property
    def receptive_fields(self) -> list[tuple[ReceptiveField, ...]]:
        """Of each layer's output with respect to the stack's input, for each spatial dimension."""
        return receptive_fields([step_of(layer) for layer in self.layers])

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the direct sums, forward, and backward where gradients are wanted."""
        return sum(map(self.macs_of, range(len(self.layers))))

    def macs_of(self, i: int) -> int:
        """Multiply-accumulates of layer i."""
        layer = self.layers[i]
        if not isinstance(layer, Plan):
            return 0
        wanted = self.wanted_of(i)
        backward = gradients.macs(layer.geometry, wanted) if wanted else 0
        return backward + (layer.macs if runs_forward(self, i) else 0)

    @property
    def parameter_count(self) -> int:
        """Elements of all weights and biases."""
        return sum(layer.parameter_count for layer in self.layers)

    @property
    def input_bytes(self) -> int:
        """Bytes of input, weights and biases, and of grad_output where gradients are wanted."""
        weights = self.parameter_count * TABLE[self.dtype].itemsize
        return weights + tensor_bytes(self.input) + (tensor_bytes(self.output) if self.wanted else 0)

    @property
    def output_bytes(self) -> int:
        """Bytes of the answer's tensors."""
        return sum(map(tensor_bytes, self.outputs.values()))

    @property
    def peak_bytes(self) -> int:
        """Bytes held at one time: inputs, answer and workspace."""
        return self.input_bytes + self.output_bytes + self.workspace_bytes


def runs_forward(plan: StackPlan, i: int) -> bool:
    """Whether layer i is computed forward: for gradients the last one is not, unless its activation needs its sums."""
    last = i == len(plan.layers) - 1
    layer = plan.layers[i]
    return plan.wanted is None or not last or (isinstance(layer, Plan) and layer.operation.activation != "none")


def check(steps: tuple[Step, ...], wanted: Wanted, grad_output: Tensor) -> None:
    """Raises InvalidConvolution where the stack has no gradients, none of those wanted, or grad_output is not as its
    output is.
    """
    if TABLE[steps[0].input.dtype].exact:
        raise InvalidConvolution(
            f"input has dtype {steps[0].input.dtype}, and integers have no gradients", "input.dtype"
        )
    if not wanted.input and not any(isinstance(step, Geometry) for step in steps):
        raise InvalidConvolution("gradients of weights are wanted, but no layer is a convolution", "gradients")
    gradients.check_header(steps[-1].output, grad_output)


def tensor_bytes(tensor: Tensor) -> int:
    """Bytes of its elements."""
    return prod(tensor.shape) * TABLE[tensor.dtype].itemsize
