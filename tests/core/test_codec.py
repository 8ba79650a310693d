"""Between the contract and the core: the same words, the same operations, the same plans."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.operations import Request, operation_from_proto, requests

from convolver.core import parameters as core
from convolver.core.choose import Capability, choose
from convolver.core.codec import (
    execution_from_proto,
    execution_to_proto,
    parameters_from_proto,
    parameters_to_proto,
    tensor_from_proto,
    tensor_to_proto,
)
from convolver.core.dtypes import TABLE
from convolver.core.geometry import Geometry
from convolver.core.operation import LARGEST, Execution, Tensor
from convolver.core.parse import parse, parse_execution
from convolver.core.plan import Plan, Report
from convolver.core.plan_codec import (
    capability_from_proto,
    capability_to_proto,
    plan_from_proto,
    plan_to_proto,
    report_from_proto,
    report_to_proto,
)
from convolver.core.request_codec import single_to_proto
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import convolution_service_pb2 as service_pb2
from convolver.v1 import plan_pb2, tensor_pb2

IMAGE, KERNEL = Tensor("float32", (1, 3, 8, 8)), Tensor("float32", (4, 3, 3, 3))
CAPABILITIES = [Capability(name, "cpu", 2, 2**30, frozenset(TABLE)) for name in ("reference", "torch:cpu")]


def names(enum: Any, prefix: str) -> set[str]:  # noqa: ANN401 - the generated wrappers have no common type
    """The enum's words, without its zero value."""
    return {name.removeprefix(prefix).lower() for name, value in enum.items() if value}


ENUMS: dict[str, tuple[Any, str, Any]] = {
    "padding words": (pb.PaddingWord, "PADDING_WORD_", get_args(core.PaddingWord)),
    "padding modes": (pb.PaddingMode, "PADDING_MODE_", get_args(core.PaddingMode)),
    "layouts": (pb.Layout, "LAYOUT_", get_args(core.Layout)),
    "activations": (pb.Activation, "ACTIVATION_", get_args(core.Activation)),
    "overflows": (pb.Overflow, "OVERFLOW_", get_args(core.Overflow)),
    "precisions": (pb.Precision, "PRECISION_", get_args(core.Precision)),
    "algorithms": (pb.Algorithm, "ALGORITHM_", get_args(core.Algorithm)),
    "priorities": (pb.Priority, "PRIORITY_", get_args(core.Priority)),
    "types": (tensor_pb2.DataType, "DATA_TYPE_", tuple(TABLE)),
}


@pytest.mark.parametrize("name", ENUMS)
def test_the_contracts_words_are_the_cores(name: str) -> None:
    enum, prefix, words = ENUMS[name]
    assert names(enum, prefix) == set(words)
    assert all(name.startswith(prefix) for name in enum.keys())  # noqa: SIM118 - not a mapping


@pytest.mark.parametrize("dtype", TABLE)
def test_every_type_comes_back_as_itself(dtype: Any) -> None:  # noqa: ANN401 - a DTypeName
    tensor = Tensor(dtype, (2, 0, LARGEST))
    assert tensor_from_proto(tensor_to_proto(tensor), "input") == tensor


@st.composite
def as_written(draw: st.DrawFn) -> Request:
    """A request with some of its parameters left out, and words of execution."""
    request = draw(requests(draw(st.sampled_from(["float32", "int8", "complex64"]))))
    execution: dict[str, Any] = {
        "precision": draw(st.sampled_from([None, *get_args(core.Precision)])),
        "algorithm": draw(st.sampled_from([None, *get_args(core.Algorithm)])),
        "backend": draw(st.sampled_from([None, "auto", "torch:cuda:1"])),
        "deterministic": draw(st.booleans()),
        "priority": draw(st.sampled_from([None, *get_args(core.Priority)])),
        "overflow": draw(st.sampled_from([None, *get_args(core.Overflow)])),
    }
    defaults = {"groups": 1, "stride": 1, "padding": 0, "transposed": False, "batch_groups": 1}
    kept = {k: v for k, v in request.parameters.items() if defaults.get(k, object()) != v or draw(st.booleans())}
    return request._replace(parameters={**kept, **execution})


def travelled(message: Any) -> Any:  # noqa: ANN401 - any message, and one of its kind
    """The message as it comes out at the other end."""
    return type(message).FromString(message.SerializeToString())


@settings(max_examples=400)
@given(as_written())
def test_an_operation_that_travels_is_the_one_that_is_parsed_here(request: Request) -> None:
    message = travelled(single_to_proto(*request))
    assert operation_from_proto(message) == request.operation
    assert execution_from_proto(message.execution) == parse_execution(request.parameters)


@settings(max_examples=400)
@given(as_written())
def test_a_plan_that_travels_is_the_same_plan(request: Request) -> None:
    execution = Execution(backend="torch", deterministic=request.parameters["deterministic"])
    plan = choose(Geometry.of(request.operation), execution, CAPABILITIES)
    message = travelled(plan_to_proto(plan))
    assert plan_from_proto(message) == plan
    assert tuple(message.outputs[0].shape) == plan.output_shape
    assert (message.macs, message.work, message.input_bytes, message.output_bytes, message.workspace_bytes) == (
        plan.macs, plan.work, plan.input_bytes, plan.output_bytes, plan.workspace_bytes,
    )  # fmt: skip


@settings(max_examples=400)
@given(as_written())
def test_a_plans_parameters_describe_the_same_operation(request: Request) -> None:
    operation = request.operation
    plan = choose(Geometry.of(operation), Execution(), CAPABILITIES)
    again: Any = plan.parameters
    assert parse(request.input, request.weight, request.bias, again) == operation
    assert parse_execution(again) == Execution(algorithm="direct", backend=plan.backend)
    sent = travelled(single_to_proto(request.input, request.weight, request.bias, again))
    assert operation_from_proto(sent) == operation


def test_an_absent_or_empty_padding_is_none() -> None:
    for message in (pb.Parameters(), pb.Parameters(explicit_padding=pb.ExplicitPadding())):
        assert parse(IMAGE, KERNEL, None, parameters_from_proto(travelled(message))) == parse(IMAGE, KERNEL, None, {})


def test_one_number_is_written_for_every_dimension() -> None:
    message = parameters_to_proto({"stride": 2, "padding": (1, 3), "dilation": (2,)}, 2)
    assert (list(message.stride), list(message.dilation)) == ([2, 2], [2, 2])
    assert (list(message.explicit_padding.begin), list(message.explicit_padding.end)) == ([1, 3], [1, 3])


def test_execution_comes_back_with_its_defaults_written_out() -> None:
    message = execution_to_proto(Execution())
    assert message.precision == pb.PRECISION_HIGHEST
    assert message.algorithm == pb.ALGORITHM_AUTO
    assert message.priority == pb.PRIORITY_INTERACTIVE
    assert execution_from_proto(pb.Execution()) == execution_from_proto(travelled(message)) == Execution()


def test_a_report_comes_back_as_itself() -> None:
    seconds = {name: i + 0.5 for i, name in enumerate(["decode", "queue", "copy_in", "compute", "copy_out", "encode"])}
    for unbatched in ("", *names(plan_pb2.UnbatchedReason, "UNBATCHED_REASON_")):
        report = Report("cuda:0 NVIDIA", 3, unbatched, seconds)
        assert report_from_proto(travelled(report_to_proto(report))) == report


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda c: c.name)
def test_a_capability_comes_back_as_itself(capability: Capability) -> None:
    assert capability_from_proto(travelled(capability_to_proto(capability))) == capability


def test_a_newer_servers_words_are_passed_over() -> None:
    message = service_pb2.Backend(name="new", dtypes=[tensor_pb2.DATA_TYPE_INT8, 99], algorithms=[pb.ALGORITHM_FFT, 99])  # type: ignore[list-item]  # unknown on purpose
    capability = capability_from_proto(travelled(message))
    assert capability.dtypes == {"int8"}
    assert capability.algorithms == ("fft",)
    assert report_from_proto(plan_pb2.Report(unbatched_reason=99)).unbatched == ""  # type: ignore[arg-type]  # unknown on purpose


def test_the_largest_plan_that_the_contract_can_say_travels() -> None:
    geometry = Geometry.of(
        parse(Tensor("int8", (1, 1, LARGEST, LARGEST)), Tensor("int8", (1, 1, 2, 2)), None, {"padding": "same"})
    )
    plan = Plan(geometry, Execution(), "reference", "direct", 1, 2**64 - 1, 2**64 - 1)
    assert plan_from_proto(travelled(plan_to_proto(plan))) == plan
