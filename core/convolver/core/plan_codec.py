"""Between the messages of convolver.v1 that a server answers and the core's own words: plans, reports, back ends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

from convolver.core import codec, request_codec
from convolver.core.choose import Capability
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.parameters import Layout, Parameters
from convolver.core.plan import ChosenAlgorithm, Plan, Report
from convolver.core.pooling import parse_pooling
from convolver.core.receptive import ReceptiveField
from convolver.core.stack import ConvolutionLayer
from convolver.core.stack_plan import LayerPlan, PoolingPlan, StackPlan
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import convolution_service_pb2 as service_pb2
from convolver.v1 import plan_pb2

_UNBATCHED = codec.Words(plan_pb2.UnbatchedReason, "UNBATCHED_REASON_")


def plan_to_proto(plan: Plan | StackPlan) -> plan_pb2.Plan:
    """The plan of one convolution or of a stack."""
    return plan_pb2.Plan(
        layers=_layers_to_proto(plan),
        outputs=[codec.tensor_to_proto(tensor) for tensor in plan.outputs.values()],
        macs=plan.macs,
        work=plan.work,
        input_bytes=plan.input_bytes,
        output_bytes=plan.output_bytes,
        workspace_bytes=plan.workspace_bytes,
        execution=codec.execution_to_proto(plan.execution),
        overflow=codec.OVERFLOW.write(plan.overflow, "overflow"),
    )


def _layers_to_proto(plan: Plan | StackPlan) -> list[plan_pb2.LayerPlan]:
    if isinstance(plan, Plan):
        return [_layer_to_proto(plan, plan.receptive_fields, 0)]
    backward = [plan.macs_of(i) - layer.macs for i, layer in enumerate(plan.layers)]
    return list(map(_layer_to_proto, plan.layers, plan.receptive_fields, backward))


def _layer_to_proto(plan: LayerPlan, fields: Iterable[ReceptiveField], backward: int) -> plan_pb2.LayerPlan:
    """`backward` are the products of its gradients, which a layer's own plan in a stack does not count."""
    layer = plan_pb2.LayerPlan(
        input=codec.tensor_to_proto(plan.input),
        output=codec.tensor_to_proto(plan.output),
        backend=plan.backend,
        algorithm=codec.EXECUTION_WORDS["algorithm"].write(plan.algorithm, "algorithm"),
        threads=plan.threads,
        macs=plan.macs + backward,
        work=plan.work + backward,
        workspace_bytes=plan.workspace_bytes,
        parameter_count=plan.parameter_count,
        receptive_fields=map(_field_to_proto, fields),
    )
    if isinstance(plan, Plan):
        layer.definition.CopyFrom(_definition(plan))
    else:
        layer.pooling.CopyFrom(request_codec.pooling_to_proto(plan.pooling.parameters, plan.pooling.ndim))
    return layer


def _definition(plan: Plan) -> pb.LayerDefinition:
    op = plan.operation
    bias = Tensor(op.dtype, (op.out_channels,)) if op.has_bias else None
    resolved = ConvolutionLayer(Tensor(op.dtype, op.weight_shape), bias, cast("Parameters", plan.parameters))
    return request_codec.definition_to_proto(resolved)


def _field_to_proto(field: ReceptiveField) -> plan_pb2.ReceptiveField:
    size, jump, start = field.doubles
    return plan_pb2.ReceptiveField(size=size, jump=jump, start=start)


def plan_from_proto(message: plan_pb2.Plan, wanted: Wanted | None = None) -> Plan:
    """The plan of one convolution, as the server has it; `wanted` are the gradients that were asked for, if any."""
    [layer] = message.layers
    return replace(_convolution(message, layer), wanted=wanted)


def stack_plan_from_proto(message: plan_pb2.Plan, wanted: Wanted | None = None) -> StackPlan:
    """The plan of a stack, as the server has it; `wanted` are the gradients that were asked for, if any."""
    layout = _layout(message)
    layers = tuple(
        _convolution(message, layer) if layer.HasField("definition") else _pooling(layer, layout)
        for layer in message.layers
    )
    execution = codec.execution_from_proto(message.execution)
    plan = StackPlan(layers, execution, message.work, message.workspace_bytes, wanted)
    forward = tuple(_forward(plan, i) for i in range(len(layers)))
    return replace(plan, layers=forward)


def _forward(plan: StackPlan, i: int) -> LayerPlan:
    """A layer whose work does not count that of its gradients, as the server has it."""
    layer = plan.layers[i]
    return replace(layer, work=layer.work + layer.macs - plan.macs_of(i)) if isinstance(layer, Plan) else layer


def _convolution(message: plan_pb2.Plan, layer: plan_pb2.LayerPlan) -> Plan:
    single = pb.Convolution(
        layers=[pb.Layer(definition=layer.definition)],
        input=layer.input,
        output_dtype=layer.output.dtype,
        overflow=message.overflow,
    )
    [geometry] = request_codec.steps_from_proto(single)
    if not isinstance(geometry, Geometry):
        raise InvalidConvolution("the plan has pooling in place of a convolution", "layers")
    algorithm = cast("ChosenAlgorithm", codec.EXECUTION_WORDS["algorithm"].read(layer.algorithm, "algorithm"))
    execution = codec.execution_from_proto(message.execution)
    return Plan(geometry, execution, layer.backend, algorithm, layer.threads, layer.work, layer.workspace_bytes)


def _pooling(layer: plan_pb2.LayerPlan, layout: Layout) -> PoolingPlan:
    words = request_codec.pooling_from_proto(layer.pooling, "pooling.")
    input, output = (codec.tensor_from_proto(tensor, "pooling") for tensor in (layer.input, layer.output))
    ndim = len(layer.pooling.kernel or layer.pooling.output_size)
    pooling = parse_pooling(input, words, ndim=ndim, layout=layout, output_dtype=output.dtype)
    return PoolingPlan(pooling, layer.backend, layer.threads, layer.workspace_bytes)


def _layout(message: plan_pb2.Plan) -> Layout:
    """That of every layer."""
    for layer in message.layers:
        if layer.HasField("definition"):
            return codec.parameters_from_proto(layer.definition.parameters).get("layout") or "channels_first"
    return "channels_first"


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
