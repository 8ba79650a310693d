"""What any gRPC client finds: generated stubs, health, reflection, and what of the contract is off."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tests.contract import (
    ANSWER,
    IMAGE,
    KERNEL,
    SERVICE,
    call,
    convolution,
    good_request,
    output,
    refusal,
    refused,
    request,
)

from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import shared_memory_service_pb2, tensor_pb2
from convolver.v1.convolution_service_pb2_grpc import ConvolutionServiceStub
from convolver.v1.shared_memory_service_pb2_grpc import SharedMemoryServiceStub

if TYPE_CHECKING:
    from convolver.v1.convolution_pb2 import Convolution

LAYERS = "convolver.v1.LayerService"
SERVICES = (SERVICE, LAYERS)


@pytest.fixture
def stub(channel: grpc.Channel) -> ConvolutionServiceStub:
    return ConvolutionServiceStub(channel)


def test_a_generated_stub_convolves(stub: ConvolutionServiceStub) -> None:
    data = [KERNEL.tobytes(), IMAGE.tobytes()]
    answer = stub.Convolve(pb.ConvolveRequest(convolution=convolution(), data=data))
    np.testing.assert_array_equal(output(answer.SerializeToString()), ANSWER)


def test_a_generated_stub_plans(stub: ConvolutionServiceStub) -> None:
    plan = stub.Plan(pb.PlanRequest(convolution=convolution())).plan
    assert (list(plan.outputs[0].shape), plan.macs) == ([1, 1, 2, 2], 16)


def test_a_generated_stub_asks_for_information(stub: ConvolutionServiceStub) -> None:
    info = stub.GetInfo(pb.GetInfoRequest())
    assert "reference" in [backend.name for backend in info.backends]
    assert info.limits.max_message_bytes == 64 * 2**20


@pytest.mark.parametrize("name", ["", *SERVICES], ids=["liveness", "readiness", "readiness of layers"])
def test_health_is_served(channel: grpc.Channel, name: str) -> None:
    health: Any = HealthStub(channel)  # whose stubs lack its methods
    request = health_pb2.HealthCheckRequest(service=name)
    serving = health_pb2.HealthCheckResponse.SERVING
    assert health.Check(request).status == serving
    watch = health.Watch(request)
    assert next(watch).status == serving
    watch.cancel()


def test_the_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    health: Any = HealthStub(channel)  # whose stubs lack its methods
    request = health_pb2.HealthCheckRequest(service="nobody.Knows")
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(request)
    assert refusal(caught.value).code == grpc.StatusCode.NOT_FOUND
    watch = health.Watch(request)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    services = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert services == {*SERVICES, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


def test_reflection_gives_the_whole_contract(channel: grpc.Channel) -> None:
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service = pool.FindServiceByName(SERVICE)
    committed = pb.DESCRIPTOR.services_by_name["ConvolutionService"]
    assert [method.name for method in service.methods] == [method.name for method in committed.methods]
    reflected = service.methods_by_name["Convolve"].input_type
    assert reflected.full_name == "convolver.v1.ConvolveRequest"
    assert reflected.fields_by_name["data"].number == 15
    assert pool.FindMessageTypeByName("convolver.v1.Parameters").fields_by_name["padding_word"].enum_type is not None


def test_shared_memory_that_is_off_is_unimplemented(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(SharedMemoryServiceStub(channel).Hold(iter([shared_memory_service_pb2.HoldRequest()]), timeout=60))
    assert refusal(caught.value).code == grpc.StatusCode.UNIMPLEMENTED


def output_region(header: Convolution) -> None:
    header.output_regions.add(id="a", length=16)


def input_region(header: Convolution) -> None:
    header.input_source.region.CopyFrom(tensor_pb2.SharedRegion(id="a", length=36))


def weight_region(header: Convolution) -> None:
    header.layers[0].weight_source.region.CopyFrom(tensor_pb2.SharedRegion(id="a", length=16))


def test_an_output_in_shared_memory_is_unsupported_by_name(channel: grpc.Channel) -> None:
    header = convolution()
    output_region(header)
    answer = refused(channel, request(header, KERNEL, IMAGE))
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
    assert "output_regions[0] is in shared memory" in answer.text


@pytest.mark.parametrize("name", ["input", "weight"])
def test_a_tensor_in_shared_memory_is_unsupported_by_name(channel: grpc.Channel, name: str) -> None:
    header = convolution()
    (input_region if name == "input" else weight_region)(header)
    answer = refused(channel, request(header, KERNEL, IMAGE))
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
    assert f"{name}_source.region is in shared memory" in answer.text


def test_a_back_end_that_is_not_there_is_unsupported_by_name(channel: grpc.Channel) -> None:
    header = convolution()
    header.execution.backend = "torch:cuda:99"
    answer = refused(channel, request(header, KERNEL, IMAGE))
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
    assert "torch:cuda:99" in answer.text
    assert "reference" in answer.text


def serialised_plan(header: Convolution) -> bytes:
    return pb.PlanRequest(convolution=header).SerializeToString()


def test_the_server_serves_on_after_all_that(channel: grpc.Channel) -> None:
    np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)
