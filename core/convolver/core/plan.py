"""What will run of one convolution and what it costs, decided from integers before an array exists. The same Plan
answers the Plan rpc, is checked against the limits, feeds admission and drives the back end.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Protocol

from convolver.core import gradients
from convolver.core.dtypes import TABLE
from convolver.core.errors import LimitExceeded
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution, Operation, Tensor
from convolver.core.parameters import Overflow
from convolver.core.receptive import ReceptiveField, receptive_fields

ChosenAlgorithm = Literal["direct", "fft"]


@dataclass(frozen=True, slots=True)
class Plan:
    """One convolution on one back end. `work` is in multiply-accumulates or their equivalents, `workspace_bytes` counts
    what is allocated beside input, weight and output while it runs. `wanted` are the gradients that are computed in
    place of the output, if any.
    """

    geometry: Geometry
    execution: Execution
    backend: str
    algorithm: ChosenAlgorithm
    threads: int
    work: int
    workspace_bytes: int
    wanted: Wanted | None = None

    @property
    def operation(self) -> Operation:
        """What is computed."""
        return self.geometry.operation

    @property
    def input(self) -> Tensor:
        """The input's header."""
        return self.geometry.input

    @property
    def output(self) -> Tensor:
        """The output's header; where gradients are wanted, that of grad_output."""
        return self.geometry.output

    @property
    def overflow(self) -> Overflow:
        """What happens to integer results that do not fit."""
        return self.operation.overflow

    @property
    def parameter_count(self) -> int:
        """Elements of weight and bias."""
        return self.geometry.parameter_count

    @property
    def receptive_fields(self) -> tuple[ReceptiveField, ...]:
        """What an output sees of the input, for each spatial dimension."""
        return receptive_fields([self.geometry])[0]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The output's shape, in the operation's layout; where gradients are wanted, that of grad_output."""
        return self.geometry.output_shape

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Names and headers of the answer's tensors, in their order: "output", or the gradients that are wanted, of
        "grad_input", "grad_weight" and "grad_bias".
        """
        if self.wanted:
            return dict(gradients.outputs(self.geometry, self.wanted))
        return {"output": self.geometry.output}

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the direct sums."""
        return gradients.macs(self.geometry, self.wanted) if self.wanted else self.geometry.macs

    @property
    def input_bytes(self) -> int:
        """Bytes of input, weight and bias, and of grad_output where gradients are wanted."""
        return self.geometry.input_bytes + (self.geometry.output_bytes if self.wanted else 0)

    @property
    def output_bytes(self) -> int:
        """Bytes of the answer's tensors."""
        return sum(prod(shape) * TABLE[dtype].itemsize for dtype, shape in self.outputs.values())

    @property
    def peak_bytes(self) -> int:
        """Bytes held at one time: inputs, output and workspace."""
        return self.input_bytes + self.output_bytes + self.workspace_bytes

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters with every word resolved to numbers, as `Parameters` writes them."""
        op, execution = self.operation, self.execution
        return {
            "stride": op.stride,
            "padding": tuple(zip(op.pad_begin, op.pad_end, strict=True)),
            "dilation": op.dilation,
            "groups": op.groups,
            "padding_mode": op.padding_mode,
            "padding_value": op.padding_value,
            "input_dilation": op.input_dilation,
            "batch_groups": op.batch_groups,
            "transposed": op.transposed,
            "output_padding": op.output_padding,
            "flip": op.flip,
            "layout": op.layout,
            "activation": op.activation,
            "output_dtype": op.output_dtype,
            "overflow": op.overflow,
            "precision": execution.precision,
            "algorithm": self.algorithm,
            "backend": self.backend,
            "deterministic": execution.deterministic,
            "priority": execution.priority,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What then happened. `batch_size` counts the requests that ran together; `unbatched` says why it is 1; `seconds`
    is by phase: decode, queue, copy_in, compute, copy_out and encode.
    """

    device: str
    batch_size: int
    unbatched: str
    seconds: dict[str, float]


LARGEST_COUNT = 2**64 - 1
"""What the contract's counts can say."""


class Planned(Protocol):
    """What limits look at: the plan of one convolution or of a stack."""

    @property
    def outputs(self) -> dict[str, Tensor]:
        """Names and headers of the answer's tensors."""

    @property
    def peak_bytes(self) -> int:
        """Bytes held at one time."""

    @property
    def work(self) -> int:
        """Multiply-accumulates or their equivalents."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server takes of one request; 0 is no limit but LARGEST_COUNT."""

    max_output_elements: int = 0
    max_request_bytes: int = 0
    max_work: int = 0

    def check(self, plan: Planned) -> None:
        """Raises LimitExceeded naming the figure, the limit and the setting."""
        for name, (_, shape) in plan.outputs.items():
            elements = f"the {name}'s elements"
            _within(elements, prod(shape), self.max_output_elements, "--max-output-elements")
        _within("bytes of inputs, output and workspace", plan.peak_bytes, self.max_request_bytes, "--max-request-bytes")
        _within("multiply-accumulates", plan.work, self.max_work, "--max-work")


def _within(subject: str, value: int, limit: int, setting: str) -> None:
    limit = limit or LARGEST_COUNT
    if value > limit:
        raise LimitExceeded(
            f"{subject} would be {value}, above this server's limit of {limit} ({setting})",
            subject,
            limit,
            value,
            setting,
        )
