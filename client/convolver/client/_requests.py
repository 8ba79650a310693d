"""Requests and answers before and after they travel, whichever way they take."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from convolver.client._interchange import AnyArray, like
from convolver.core import gradients
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.stack_plan import tensor_bytes
from convolver.core.wire import join

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from convolver.client._destination import Destination
    from convolver.core.plan import Report
    from convolver.core.stack import Step
    from convolver.core.tensors import Array

LARGEST_UNARY = 1 << 20
"""Bytes of a request or of an answer up to which both travel as one message each; above, in chunks
(docs/decisions/0012-when-chunks.md)."""


class Described(NamedTuple):
    """A serialised Convolution, and the headers and the bytes of its answer's tensors."""

    convolution: bytes
    answer: tuple[Tensor, ...]
    answer_bytes: int


class Request(NamedTuple):
    """What is asked: a serialised Convolution, the bytes of its tensors in their order (views of the caller's arrays
    where that is possible), and what its answer's tensors are, are like, and are written to.
    """

    described: Described
    data: Sequence[memoryview]
    like: AnyArray
    out: Destination | None = None

    @property
    def convolution(self) -> bytes:
        """The serialised Convolution."""
        return self.described.convolution

    @property
    def data_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(view.nbytes for view in self.data)

    @property
    def is_small(self) -> bool:
        """Whether it and its answer are best sent as one message each."""
        return max(self.data_bytes, self.described.answer_bytes) <= LARGEST_UNARY

    @property
    def message(self) -> bytes:
        """The ConvolveRequest."""
        return join(enveloped(self.convolution), self.data)

    def returned(self, output: Array) -> AnyArray:
        """The output as the caller gets it: an array of his own where he gave one, else one like his input."""
        return self.out.given if self.out else like(output, self.like)


class Reply(NamedTuple):
    """What came: the plan as it was sent, the report, and the tensors, the caller's own to write to."""

    plan: bytes
    report: Report
    tensors: Sequence[Array]


def enveloped(convolution: bytes, field: int = 1) -> bytes:
    """A request whose field of that number is the Convolution: 1 but in ConvolveStreamRequest."""
    return join(b"", [convolution], field=field, filler=None)


def described(convolution: bytes, steps: Sequence[Step], asked: tuple[Wanted, Tensor] | None) -> Described:
    """The Convolution of these steps with what follows for its answer."""
    answer = tuple(_gradients(steps, asked[0])) if asked else (steps[-1].output,)
    return Described(convolution, answer, sum(map(tensor_bytes, answer)))


def _gradients(steps: Sequence[Step], wanted: Wanted) -> Iterator[Tensor]:
    if wanted.input:
        yield steps[0].input
    for step in steps:
        if isinstance(step, Geometry):
            yield from (header for name, header in gradients.outputs(step, wanted) if name != "grad_input")
