"""PutLayer: what is held in the end, and what is refused before."""

from __future__ import annotations

import asyncio
import hashlib
import queue
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.server.layer_calls import (
    BIAS,
    BOOL,
    BUDGET,
    FLOAT32,
    SERVICE,
    UNKNOWN,
    WEIGHT,
    definition,
    first,
    listed,
    metric,
    put,
    put_number,
    put_raw,
    refused,
    rest,
)
from tests.wait import until, until_in_loop

from convolver.core.wire import split
from convolver.server import metrics
from convolver.server.calls import Calls
from convolver.server.layer_service import LayerService
from convolver.server.layers import LayerStore
from convolver.v1 import convolution_pb2, tensor_pb2
from convolver.v1 import layer_service_pb2 as pb
from convolver.v1.layer_service_pb2_grpc import LayerServiceStub

if TYPE_CHECKING:
    from tests.conftest import RunningServer


def ended(running: RunningServer) -> float:
    """Calls of PutLayer that have ended."""
    labels = f'grpc_method="PutLayer",grpc_service="{SERVICE}",grpc_type="client_stream"'
    return metric(running, f"grpc_server_handling_seconds_count{{{labels}}}")


class Sender:
    """The messages of a call that go out one by one, as the test says."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._messages: queue.SimpleQueue[pb.PutLayerRequest | None] = queue.SimpleQueue()
        self.call: Any = LayerServiceStub(channel).PutLayer.future(iter(self._messages.get, None), timeout=60)

    def send(self, message: pb.PutLayerRequest) -> None:
        self._messages.put(message)

    def finish(self) -> None:
        self._messages.put(None)


def test_a_layer_that_was_put_is_held_under_the_digest_of_its_bytes(layer_stub: LayerServiceStub) -> None:
    layer, header = put(layer_stub, first(WEIGHT, BIAS)), definition().SerializeToString()
    hashed = hashlib.sha256(len(header).to_bytes(8, "little") + header + WEIGHT + BIAS).hexdigest()
    assert (layer.digest, layer.definition) == (f"sha256:{hashed}", definition())
    assert layer.bytes == len(header) + len(WEIGHT) + len(BIAS)
    held = layer_stub.GetLayer(pb.GetLayerRequest(digest=layer.digest)).layer
    assert (held.digest, held.definition, held.bytes) == (layer.digest, layer.definition, layer.bytes)
    assert held.idle_seconds >= layer.idle_seconds >= 0


@pytest.mark.parametrize(
    "parts",
    [
        [first(), rest(WEIGHT), rest(BIAS)],
        [first(WEIGHT + BIAS)],
        [first(WEIGHT[:5]), rest(), rest(WEIGHT[5:], BIAS[:1]), rest(b"", BIAS[1:], b"")],
        [first(), *(rest(bytes([byte])) for byte in WEIGHT + BIAS)],
        [pb.PutLayerRequest(filler=bytes(7), definition=definition(), data=[WEIGHT]), rest(BIAS)],
    ],
    ids=["by tensor", "at once", "anyhow", "byte by byte", "with filler"],
)
def test_the_borders_of_messages_and_entries_mean_nothing(
    layer_stub: LayerServiceStub, parts: list[pb.PutLayerRequest]
) -> None:
    assert put(layer_stub, *parts).digest == put(layer_stub, first(WEIGHT, BIAS)).digest
    assert len(listed(layer_stub)) == 1


def test_a_layer_larger_than_a_message_arrives_whole(layer_stub: LayerServiceStub) -> None:
    shape = [3, 1, 2**20]
    data = np.random.default_rng(1).bytes(4 * 3 * 2**20)
    header = definition(weight=tensor_pb2.Tensor(dtype=FLOAT32, shape=shape), bias=None)
    chunks = [data[start : start + 2**21] for start in range(0, len(data), 2**21)]
    layer = put(layer_stub, pb.PutLayerRequest(definition=header), *map(rest, chunks))
    sent = header.SerializeToString()
    assert layer.digest == f"sha256:{hashlib.sha256(len(sent).to_bytes(8, 'little') + sent + data).hexdigest()}"


def test_the_definition_comes_back_as_it_was_sent(layer_stub: LayerServiceStub, layer_channel: grpc.Channel) -> None:
    whole = definition()
    parts = [convolution_pb2.LayerDefinition(bias=whole.bias), convolution_pb2.LayerDefinition(weight=whole.weight)]
    sent = b"".join(part.SerializeToString() for part in parts)  # protobuf itself would write the weight first
    message = b"\x0a" + bytes([len(sent)]) + sent + rest(WEIGHT, BIAS).SerializeToString()
    answer = put_raw(layer_channel, [message])
    _, (layer,) = split(answer, 1)
    _, (back,) = split(layer, 2)
    assert bytes(back) == sent
    hashed = hashlib.sha256(len(sent).to_bytes(8, "little") + sent + WEIGHT + BIAS).hexdigest()
    assert pb.PutLayerResponse.FromString(answer).layer.digest == f"sha256:{hashed}"
    assert listed(layer_stub) == [f"sha256:{hashed}"]


LARGE = tensor_pb2.Tensor(dtype=FLOAT32, shape=[1, 1, 2**19 + 1])
SQUARE = tensor_pb2.Tensor(dtype=FLOAT32, shape=[4, 1, 2, 3])
WRONG: dict[str, tuple[list[pb.PutLayerRequest], str]] = {
    "nothing": ([], "definition"),
    "data alone": ([rest(WEIGHT)], "definition"),
    "definition late": ([rest(), first(WEIGHT, BIAS)], "definition"),
    "second definition": ([first(WEIGHT), first(BIAS)], "definition"),
    "second definition after all data": ([first(WEIGHT, BIAS), first()], "definition"),
    "no weight": ([pb.PutLayerRequest(definition=convolution_pb2.LayerDefinition())], "weight"),
    "no dtype": ([first(weight=tensor_pb2.Tensor(shape=[1, 1, 1]), bias=None)], "weight.dtype"),
    "unknown dtype": ([first(weight=tensor_pb2.Tensor(dtype=99, shape=[1, 1, 1]), bias=None)], "weight.dtype"),  # type: ignore[arg-type]  # no such member, on purpose
    "scalar weight": ([first(weight=tensor_pb2.Tensor(dtype=FLOAT32), bias=None)], "weight.shape"),
    "empty weight": ([first(weight=tensor_pb2.Tensor(dtype=FLOAT32, shape=[4, 0, 3]), bias=None)], "weight.shape[1]"),
    "negative size": ([first(weight=tensor_pb2.Tensor(dtype=FLOAT32, shape=[4, 1, -3]))], "weight.shape[2]"),
    "huge size": ([first(weight=tensor_pb2.Tensor(dtype=FLOAT32, shape=[2**40, 1, 3]))], "weight.shape[0]"),
    "bias dtype": ([first(bias=tensor_pb2.Tensor(dtype=BOOL, shape=[4]))], "bias.dtype"),
    "bias shape": ([first(bias=tensor_pb2.Tensor(dtype=FLOAT32, shape=[3]))], "bias.shape"),
    "stride": ([first(parameters=convolution_pb2.Parameters(stride=[1, 0]))], "stride[1]"),
    "strides": ([first(parameters=convolution_pb2.Parameters(stride=[1]))], "stride"),
    "groups": ([first(parameters=convolution_pb2.Parameters(groups=3))], "groups"),
    "no groups": ([first(parameters=convolution_pb2.Parameters(groups=-1))], "groups"),
    "batch groups": ([first(parameters=convolution_pb2.Parameters(batch_groups=3))], "batch_groups"),
    "output size": ([first(parameters=convolution_pb2.Parameters(output_size=[5, 5]))], "output_size"),
    "activation": ([first(activation=99)], "activation"),
    "too little": ([first(WEIGHT), rest(BIAS[:-1])], "data"),
    "no data": ([first()], "data"),
    "too much": ([first(WEIGHT), rest(BIAS, b"\0")], "data"),
    "large message": ([first(bytes(2**21 + 4), weight=LARGE, bias=None)], "data"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_layer_is_refused_by_its_field_and_not_held(layer_stub: LayerServiceStub, name: str) -> None:
    messages, field = WRONG[name]
    answer = refused(lambda: put(layer_stub, *messages))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert listed(layer_stub) == []


def test_a_refusal_of_data_names_the_numbers(layer_stub: LayerServiceStub) -> None:
    little = refused(lambda: put(layer_stub, first(WEIGHT), rest(BIAS[:-1])))
    much = refused(lambda: put(layer_stub, first(WEIGHT + BIAS, b"x")))
    there = "but there are 112 of weight (4, 1, 2, 3) of float32 and bias (4,) of float32"
    assert little.text == f"111 bytes of data came, {there}"
    assert much.text == f"113 bytes of data or more came, {there}"


def test_a_definition_twice_in_one_message_is_refused(
    layer_stub: LayerServiceStub, layer_channel: grpc.Channel
) -> None:
    once = pb.PutLayerRequest(definition=definition()).SerializeToString()
    answer = refused(lambda: put_raw(layer_channel, [once + once + rest(WEIGHT, BIAS).SerializeToString()]))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "definition")
    assert listed(layer_stub) == []


@pytest.mark.parametrize("byte", [2, 255])
def test_a_bool_is_neither_0_nor_1(layer_stub: LayerServiceStub, byte: int) -> None:
    bools = tensor_pb2.Tensor(dtype=BOOL, shape=[1, 1, 3])
    assert put(layer_stub, first(b"\0\1\0", weight=bools, bias=None)).definition.weight == bools
    answer = refused(lambda: put(layer_stub, first(bytes([0, byte, 1]), weight=bools, bias=None)))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "weight")
    assert len(listed(layer_stub)) == 1


def test_an_unknown_field_of_a_definition_is_refused_by_its_path(layer_channel: grpc.Channel) -> None:
    weight = SQUARE.SerializeToString() + UNKNOWN
    header = b"\x12" + bytes([len(weight)]) + weight
    answer = refused(lambda: put_raw(layer_channel, [b"\x0a" + bytes([len(header)]) + header]))
    assert answer.code == grpc.StatusCode.UNIMPLEMENTED
    assert "request.definition.weight.100" in answer.text


def test_a_layer_larger_than_the_store_is_refused_before_its_data_comes(
    layer_stub: LayerServiceStub, layer_channel: grpc.Channel
) -> None:
    digest = put_number(layer_stub, 1)
    sender = Sender(layer_channel)
    sender.send(first(weight=tensor_pb2.Tensor(dtype=FLOAT32, shape=[2**30, 2**20, 2**30]), bias=None))
    answer = refused(sender.call.result)  # which has not finished, and sent no data
    sender.finish()
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert answer.info.metadata["setting"] == "--layer-budget"
    assert (answer.info.metadata["limit"], answer.quota.violations[0].subject) == (str(BUDGET), "bytes of the layer")
    assert int(answer.info.metadata["value"]) > 2**82
    assert listed(layer_stub) == [digest]


def test_too_much_data_is_refused_at_once(layer_stub: LayerServiceStub, layer_channel: grpc.Channel) -> None:
    sender = Sender(layer_channel)
    sender.send(first(WEIGHT))
    sender.send(rest(BIAS, BIAS))
    assert refused(sender.call.result).field == "data"
    sender.finish()
    assert listed(layer_stub) == []


def test_a_call_that_breaks_off_leaves_nothing(
    layer_stub: LayerServiceStub, layer_channel: grpc.Channel, layer_server: RunningServer
) -> None:
    before, received = ended(layer_server), metric(layer_server, "convolver_received_bytes_total")
    sender = Sender(layer_channel)
    sender.send(first(WEIGHT))
    until(lambda: metric(layer_server, "convolver_received_bytes_total") > received, "the first message to be taken")
    sender.call.cancel()
    sender.finish()
    until(lambda: ended(layer_server) > before, "the call to end")
    assert listed(layer_stub) == []
    assert (metric(layer_server, "convolver_layers"), metric(layer_server, "convolver_layer_bytes")) == (0, 0)


def test_a_server_that_stops_waits_for_a_call_in_flight() -> None:
    async def whole() -> None:
        calls, server = Calls(), grpc.aio.server()
        server.add_generic_rpc_handlers((LayerService(LayerStore(10**6), calls, 60).handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            rpc: Any = channel.stream_unary(f"/{SERVICE}/PutLayer")(timeout=60)
            before = received()
            await rpc.write(first(WEIGHT).SerializeToString())
            await until_in_loop(lambda: received() > before, "the first message to be taken")
            ended = asyncio.create_task(calls.ended())
            assert not (await asyncio.wait([ended], timeout=0))[0]
            await rpc.write(rest(BIAS).SerializeToString())
            await rpc.done_writing()
            await rpc
            await ended
        await server.stop(None)

    asyncio.run(whole())


def received() -> float:
    return metrics.REGISTRY.get_sample_value("convolver_received_bytes_total") or 0


MESSAGE = first(
    WEIGHT,
    BIAS[:4],
    bias=tensor_pb2.Tensor(dtype=FLOAT32, shape=[1]),
    parameters=convolution_pb2.Parameters(transposed=True, output_size=[5, 5], stride=[2, 3]),
).SerializeToString()
FINE = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A good first message, parts of whose bytes are others."""
    message = bytearray(MESSAGE)
    for _ in range(draw(st.integers(0, 6))):
        start = draw(st.integers(0, len(message)))
        message[start : start + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(message)


def test_the_message_that_is_mutated_is_a_good_one(layer_stub: LayerServiceStub, layer_channel: grpc.Channel) -> None:
    assert pb.PutLayerResponse.FromString(put_raw(layer_channel, [MESSAGE])).layer.digest in listed(layer_stub)


@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=mutated() | st.binary(max_size=60))
def test_no_first_message_makes_the_server_fail(layer_channel: grpc.Channel, message: bytes) -> None:
    call: Any = layer_channel.stream_unary(f"/{SERVICE}/PutLayer")
    code = call.future(iter([message]), timeout=60).code()
    assert code in FINE
