"""Between the messages of convolver.v1 that a server answers and the core's own words: plans, reports, back ends."""

from __future__ import annotations

from typing import Any, cast

from convolver.core import codec
from convolver.core.choose import Capability
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.parameters import Parameters
from convolver.core.plan import ChosenAlgorithm, Plan, Report
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import convolution_service_pb2 as service_pb2
from convolver.v1 import plan_pb2

_UNBATCHED = codec.Words(plan_pb2.UnbatchedReason, "UNBATCHED_REASON_")


def plan_to_proto(plan: Plan) -> plan_pb2.Plan:
    """The plan of one layer."""
    op, geometry = plan.operation, plan.geometry
    resolved = cast("Parameters", plan.parameters)
    layer = plan_pb2.LayerPlan(
        definition=pb.LayerDefinition(
            parameters=codec.parameters_to_proto(resolved, op.ndim),
            weight=codec.tensor_to_proto(Tensor(op.dtype, op.weight_shape)),
            bias=codec.tensor_to_proto(Tensor(op.dtype, (op.out_channels,))) if op.has_bias else None,
            activation=codec.ACTIVATION.write(op.activation, "activation"),
        ),
        input=codec.tensor_to_proto(Tensor(op.dtype, op.input_shape)),
        output=codec.tensor_to_proto(geometry.output),
        backend=plan.backend,
        algorithm=codec.EXECUTION_WORDS["algorithm"].write(plan.algorithm, "algorithm"),
        threads=plan.threads,
        macs=plan.macs,
        work=plan.work,
        workspace_bytes=plan.workspace_bytes,
        parameter_count=geometry.parameter_count,
    )
    return plan_pb2.Plan(
        layers=[layer],
        outputs=[codec.tensor_to_proto(tensor) for tensor in plan.outputs.values()],
        macs=plan.macs,
        work=plan.work,
        input_bytes=plan.input_bytes,
        output_bytes=plan.output_bytes,
        workspace_bytes=plan.workspace_bytes,
        execution=codec.execution_to_proto(plan.execution),
        overflow=codec.OVERFLOW.write(op.overflow, "overflow"),
    )


def plan_from_proto(message: plan_pb2.Plan, wanted: Wanted | None = None) -> Plan:
    """The plan of one layer, as the server has it; `wanted` are the gradients that were asked for, if any."""
    layer = message.layers[0]
    convolution = pb.Convolution(
        layers=[pb.Layer(definition=layer.definition)],
        input=layer.input,
        output_dtype=layer.output.dtype,
        overflow=message.overflow,
    )
    algorithm = cast("ChosenAlgorithm", codec.EXECUTION_WORDS["algorithm"].read(layer.algorithm, "algorithm"))
    return Plan(
        geometry=Geometry.of(codec.operation_from_proto(convolution)),
        execution=codec.execution_from_proto(message.execution),
        backend=layer.backend,
        algorithm=algorithm,
        threads=layer.threads,
        work=layer.work,
        workspace_bytes=layer.workspace_bytes,
        wanted=wanted,
    )


def report_to_proto(report: Report) -> plan_pb2.Report:
    """What happened to a request."""
    return plan_pb2.Report(
        device=report.device,
        batch_size=report.batch_size,
        unbatched_reason=_UNBATCHED.write(report.unbatched or None, "unbatched"),
        seconds=plan_pb2.Phases(**report.seconds),
    )


def report_from_proto(message: plan_pb2.Report) -> Report:
    """What happened to a request."""
    seconds = {field.name: getattr(message.seconds, field.name) for field in plan_pb2.Phases.DESCRIPTOR.fields}
    return Report(message.device, message.batch_size, _UNBATCHED.to_word.get(message.unbatched_reason, ""), seconds)


def capability_to_proto(capability: Capability) -> service_pb2.Backend:
    """A back end as GetInfo answers it."""
    algorithms: list[Any] = [codec.EXECUTION_WORDS["algorithm"].to_value[name] for name in capability.algorithms]
    return service_pb2.Backend(
        name=capability.name,
        device=capability.device,
        threads=capability.threads,
        memory_bytes=capability.memory_bytes,
        dtypes=[value for name, value in codec.FROM_DTYPE.items() if name in capability.dtypes],
        algorithms=algorithms,
    )


def capability_from_proto(message: service_pb2.Backend) -> Capability:
    """A back end of a server's GetInfo."""
    words = codec.EXECUTION_WORDS["algorithm"].to_word
    return Capability(
        name=message.name,
        device=message.device,
        threads=message.threads,
        memory_bytes=message.memory_bytes,
        dtypes=frozenset(codec.TO_DTYPE[value] for value in message.dtypes if value in codec.TO_DTYPE),
        algorithms=cast(
            "tuple[ChosenAlgorithm, ...]", tuple(words[value] for value in message.algorithms if value in words)
        ),
    )
