"""What a server answers, whatever the client's colour."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import numpy as np

from convolver.client import _client_shared as shared
from convolver.client._gradients import Gradients
from convolver.client._interchange import AnyArray, like
from convolver.core import plan_codec
from convolver.core.errors import BackendFailure
from convolver.core.gradients import Wanted
from convolver.core.plan import Plan
from convolver.core.stack_plan import StackPlan
from convolver.core.tensors import from_bytes
from convolver.core.wire import split
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import plan_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.core.errors import ConvolverError
    from convolver.core.operation import Tensor
    from convolver.core.plan import Report
    from convolver.core.tensors import Array


class Answer(NamedTuple):
    """An output, of the input's library, with the plan that was followed and the report of what happened."""

    output: AnyArray
    plan: Plan
    report: Report


class StackAnswer(NamedTuple):
    """An output, of the input's library, with the plan that was followed and the report of what happened."""

    output: AnyArray
    plan: StackPlan
    report: Report


class StackGradients(NamedTuple):
    """The gradients of a stack that were asked for, of the input's library (None for the others), `weights` and
    `biases` with one entry for each layer, with the plan that was followed and the report of what happened.
    """

    input: AnyArray
    weights: list[AnyArray]
    biases: list[AnyArray]
    plan: StackPlan
    report: Report


P = TypeVar("P", Plan, StackPlan)
"""The plan of one convolution, or of a stack."""


class _Followed(NamedTuple, Generic[P]):
    """A plan, and the headers of the answer's tensors."""

    plan: P
    headers: dict[str, Tensor]


class _Result(NamedTuple, Generic[P]):
    plan: P
    report: Report
    outputs: dict[str, Array]


@lru_cache(shared.REMEMBERED)
def _plan(message: bytes, wanted: Wanted | None) -> _Followed[Plan]:
    plan = plan_codec.plan_from_proto(plan_pb2.Plan.FromString(message), wanted)
    return _Followed(plan, plan.outputs)


@lru_cache(shared.REMEMBERED)
def _stack_plan(message: bytes, wanted: Wanted | None) -> _Followed[StackPlan]:
    plan = plan_codec.stack_plan_from_proto(plan_pb2.Plan.FromString(message), wanted)
    return _Followed(plan, plan.outputs)


def _read(result: plan_pb2.Result, entries: Sequence[memoryview], followed: _Followed[P]) -> _Result[P]:
    """The tensors are copies, the caller's own to write to. Raises what `shared.blaming_the_server` turns round."""
    plan, headers = followed
    if len(entries) != len(headers):
        raise BackendFailure(f"the answer has {len(entries)} tensors, not {len(headers)}")
    outputs = {
        name: np.array(from_bytes(entry, header, name))
        for entry, (name, header) in zip(entries, headers.items(), strict=True)
    }
    return _Result(plan, plan_codec.report_from_proto(result.report), outputs)


def _single(response: bytes, wanted: Wanted | None = None) -> _Result[Plan]:
    with shared.blaming_the_server():
        head, entries = split(response)
        result = pb.ConvolveResponse.FromString(head).result
        return _read(result, entries, _plan(result.plan.SerializeToString(), wanted))


def _stack(response: bytes, wanted: Wanted | None = None) -> _Result[StackPlan]:
    with shared.blaming_the_server():
        head, entries = split(response)
        result = pb.ConvolveResponse.FromString(head).result
        return _read(result, entries, _stack_plan(result.plan.SerializeToString(), wanted))


def plan_answer(response: bytes) -> Plan:
    """The plan of a Plan response for one convolution."""
    with shared.blaming_the_server():
        return plan_codec.plan_from_proto(pb.PlanResponse.FromString(response).plan)


def stack_plan_answer(response: bytes) -> StackPlan:
    """The plan of a Plan response, as that of a stack."""
    with shared.blaming_the_server():
        return plan_codec.stack_plan_from_proto(pb.PlanResponse.FromString(response).plan)


def convolve_answer(request: shared.Request, response: bytes) -> Answer:
    """The answer of a Convolve response for one convolution. The output is the caller's own to write to."""
    plan, report, outputs = _single(response)
    return Answer(like(outputs["output"], request.like), plan, report)


def stack_answer(request: shared.Request, response: bytes) -> StackAnswer:
    """The same for a stack."""
    plan, report, outputs = _stack(response)
    return StackAnswer(like(outputs["output"], request.like), plan, report)


def gradients_answer(request: shared.Request, response: bytes, wanted: Wanted) -> Gradients:
    """The gradients of a Convolve response for one convolution, the caller's own to write to."""
    plan, report, outputs = _single(response, wanted)
    found = {name: like(array, request.like) for name, array in outputs.items()}
    return Gradients(found.get("grad_input"), found.get("grad_weight"), found.get("grad_bias"), plan, report)


def stack_gradients_answer(request: shared.Request, response: bytes, wanted: Wanted) -> StackGradients:
    """The same for a stack."""
    plan, report, outputs = _stack(response, wanted)
    found = {name: like(array, request.like) for name, array in outputs.items()}
    weights, biases = (
        [found.get(f"layers[{i}].{name}") for i in range(len(plan.layers))] for name in ("grad_weight", "grad_bias")
    )
    return StackGradients(found.get("grad_input"), weights, biases, plan, report)


class Item(NamedTuple):
    """One answer of a stream: the request's number, and its output, or what went wrong."""

    number: int
    outcome: Array | ConvolverError


def stream_answer(response: bytes, address: str, timeout: float | None) -> Item:
    """One answer of ConvolveStream."""
    with shared.blaming_the_server():
        head, entries = split(response)
        message = pb.ConvolveStreamResponse.FromString(head)
        if message.HasField("status"):
            return Item(message.id, shared.error_of_status(message.status, address, timeout))
        followed = _stack_plan(message.result.plan.SerializeToString(), None)
        return Item(message.id, _read(message.result, entries, followed).outputs["output"])
