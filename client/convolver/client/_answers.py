"""What a server answers, whatever the client's colour."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from convolver.client import _client_shared as shared
from convolver.client._gradients import Gradients
from convolver.client._interchange import AnyArray
from convolver.client._requests import Reply, Request
from convolver.core import plan_codec
from convolver.core.codec import tensor_from_proto
from convolver.core.errors import BackendFailure, InvalidConvolution
from convolver.core.gradients import Wanted
from convolver.core.plan import Plan
from convolver.core.stack_plan import StackPlan
from convolver.core.tensors import from_bytes
from convolver.core.wire import split
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import plan_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.client._destination import Destination
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


P = TypeVar("P", Plan, StackPlan)
"""The plan of one convolution, or of a stack."""


class StackGradients(NamedTuple):
    """The gradients of a stack that were asked for, of the input's library (None for the others), `weights` and
    `biases` with one entry for each layer, with the plan that was followed and the report of what happened.
    """

    input: AnyArray
    weights: list[AnyArray]
    biases: list[AnyArray]
    plan: StackPlan
    report: Report


@lru_cache(shared.REMEMBERED)
def headers(plan: bytes) -> tuple[Tensor, ...]:
    """Of the answer's tensors, as its serialised plan has them."""
    outputs = plan_pb2.Plan.FromString(plan).outputs
    return tuple(tensor_from_proto(tensor, f"plan.outputs[{i}]") for i, tensor in enumerate(outputs))


@lru_cache(shared.REMEMBERED)
def _plan(message: bytes, wanted: Wanted | None) -> Plan:
    plan = plan_codec.plan_from_proto(plan_pb2.Plan.FromString(message), wanted)
    return _checked(plan, message)


@lru_cache(shared.REMEMBERED)
def _stack_plan(message: bytes, wanted: Wanted | None) -> StackPlan:
    plan = plan_codec.stack_plan_from_proto(plan_pb2.Plan.FromString(message), wanted)
    return _checked(plan, message)


def _checked(plan: P, message: bytes) -> P:
    """Raises InvalidConvolution where the tensors of the answer are not those of its plan."""
    if tuple(plan.outputs.values()) != headers(message):
        raise InvalidConvolution(f"the plan's outputs would be {plan.outputs}, not {headers(message)}")
    return plan


def unary_reply(response: bytes, out: Destination | None = None) -> Reply:
    """What a Convolve response brings."""
    with shared.blaming_the_server():
        head, entries = split(response)
        return _reply(pb.ConvolveResponse.FromString(head).result, entries, out)


def _reply(result: plan_pb2.Result, entries: Sequence[memoryview], out: Destination | None) -> Reply:
    """Raises what `shared.blaming_the_server` turns round."""
    plan = result.plan.SerializeToString()
    known = headers(plan)
    if len(entries) != len(known):
        raise BackendFailure(f"the answer has {len(entries)} tensors, not {len(known)}")
    views = [from_bytes(entry, header, "a tensor") for entry, header in zip(entries, known, strict=True)]
    if out:
        out.take(*views)
    tensors = [out.array] if out else list(map(np.array, views))
    return Reply(plan, plan_codec.report_from_proto(result.report), tensors)


def plan_answer(response: bytes) -> Plan:
    """The plan of a Plan response for one convolution."""
    with shared.blaming_the_server():
        return plan_codec.plan_from_proto(pb.PlanResponse.FromString(response).plan)


def stack_plan_answer(response: bytes) -> StackPlan:
    """The plan of a Plan response, as that of a stack."""
    with shared.blaming_the_server():
        return plan_codec.stack_plan_from_proto(pb.PlanResponse.FromString(response).plan)


def convolve_answer(request: Request, reply: Reply) -> Answer:
    """The answer to a request for one convolution. The output is the caller's own to write to."""
    with shared.blaming_the_server():
        plan = _plan(reply.plan, None)
    return Answer(request.returned(*reply.tensors), plan, reply.report)


def stack_answer(request: Request, reply: Reply) -> StackAnswer:
    """The same for a stack."""
    with shared.blaming_the_server():
        plan = _stack_plan(reply.plan, None)
    return StackAnswer(request.returned(*reply.tensors), plan, reply.report)


def gradients_answer(request: Request, reply: Reply, wanted: Wanted) -> Gradients:
    """The gradients of one convolution, the caller's own to write to."""
    with shared.blaming_the_server():
        plan = _plan(reply.plan, wanted)
    found = _named(request, reply, plan)
    return Gradients(found.get("grad_input"), found.get("grad_weight"), found.get("grad_bias"), plan, reply.report)


def stack_gradients_answer(request: Request, reply: Reply, wanted: Wanted) -> StackGradients:
    """The same for a stack."""
    with shared.blaming_the_server():
        plan = _stack_plan(reply.plan, wanted)
    found = _named(request, reply, plan)
    weights, biases = (
        [found.get(f"layers[{i}].{name}") for i in range(len(plan.layers))] for name in ("grad_weight", "grad_bias")
    )
    return StackGradients(found.get("grad_input"), weights, biases, plan, reply.report)


def _named(request: Request, reply: Reply, plan: Plan | StackPlan) -> dict[str, AnyArray]:
    return {name: request.returned(array) for name, array in zip(plan.outputs, reply.tensors, strict=True)}


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
        _stack_plan(message.result.plan.SerializeToString(), None)
        [output] = _reply(message.result, entries, None).tensors
        return Item(message.id, output)
