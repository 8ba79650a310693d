"""Layers that stay: kept by the request that brings them, named by their digest in those that follow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import FLOAT32, call, output, refused, request
from tests.server.kept_layers import (
    BIAS,
    DIGEST,
    W,
    X,
    Y,
    definition,
    digest_of,
    header,
    is_y,
    keeping,
    kept,
    maximum,
    named,
    through,
)
from tests.server.layer_calls import ABSENT, BUDGET, listed, metric, put
from tests.server.stream_calls import SLOW_IMAGE, SLOW_KERNEL, OpenStream, item, quick, tensor
from tests.wait import until

from convolver.v1 import convolution_pb2, layer_service_pb2, tensor_pb2
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1.layer_service_pb2_grpc import LayerServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from tests.conftest import RunningServer


@pytest.fixture
def channel(layer_channel: grpc.Channel, layer_stub: LayerServiceStub) -> grpc.Channel:
    """To a server that holds nothing."""
    assert listed(layer_stub) == []
    return layer_channel


def delete(stub: LayerServiceStub, digest: str) -> None:
    stub.DeleteLayer(layer_service_pb2.DeleteLayerRequest(digest=digest))


def plan_of(header: convolution_pb2.Convolution) -> bytes:
    return pb.PlanRequest(convolution=header).SerializeToString()


def test_a_layer_that_is_kept_is_known_by_its_digest(channel: grpc.Channel, layer_stub: LayerServiceStub) -> None:
    assert is_y(call(channel, keeping()))
    assert listed(layer_stub) == [DIGEST]
    assert is_y(call(channel, request(through(named(DIGEST)), X)))
    assert is_y(call(channel, request(through(named(DIGEST.upper().replace("SHA", "sha"))), X)))


def test_a_layer_that_is_not_to_be_kept_is_not(channel: grpc.Channel, layer_stub: LayerServiceStub) -> None:
    layer = convolution_pb2.Layer(definition=definition())
    assert is_y(call(channel, request(through(layer), W, BIAS, X)))
    call(channel, plan_of(through(kept())), "Plan")
    assert listed(layer_stub) == []


def test_a_stream_keeps_layers_too(channel: grpc.Channel, layer_stub: LayerServiceStub) -> None:
    with OpenStream(channel) as stream:
        stream.send(item(1, through(kept()), W, BIAS, X))
        np.testing.assert_array_equal(tensor(stream.next()), Y)
        stream.send(item(2, through(named(DIGEST)), X))
        np.testing.assert_array_equal(tensor(stream.next()), Y)
    assert listed(layer_stub) == [DIGEST]


def as_sent(sent: bytes) -> bytes:
    """`keeping`, but for the bytes of the definition."""
    layer = convolution_pb2.Layer(keep=True).SerializeToString()
    layer = b"\x0a" + bytes([len(sent)]) + sent + layer
    rest = convolution_pb2.Convolution(input=header(X.shape)).SerializeToString()
    whole = rest + b"\x0a" + bytes([len(layer)]) + layer
    data = pb.ConvolveRequest(data=[each.tobytes() for each in (W, BIAS, X)]).SerializeToString()
    return b"\x0a" + bytes([len(whole)]) + whole + data


def unpacked() -> bytes:
    """The weight, each size in a field of its own."""
    shape = b"".join(b"\x10" + bytes([size]) for size in W.shape)
    weight = tensor_pb2.Tensor(dtype=FLOAT32).SerializeToString() + shape
    return b"\x12" + bytes([len(weight)]) + weight


def bias_field() -> bytes:
    return convolution_pb2.LayerDefinition(bias=header(BIAS.shape)).SerializeToString()


SENT = {
    "as protobuf writes it": definition().SerializeToString(),
    "a list unpacked": unpacked() + bias_field(),
    "fields in another order": bias_field()
    + convolution_pb2.LayerDefinition(weight=header(W.shape)).SerializeToString(),
    "a default written": definition().SerializeToString() + b"\x20\x00",
    "parameters that are empty": b"\x0a\x00" + definition().SerializeToString(),
}


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
def test_the_digest_is_of_the_bytes_that_came(channel: grpc.Channel, layer_stub: LayerServiceStub, sent: bytes) -> None:
    assert convolution_pb2.LayerDefinition.FromString(sent).weight == header(W.shape)
    assert is_y(call(channel, as_sent(sent)))
    digest = digest_of(sent, W, BIAS)
    assert listed(layer_stub) == [digest]
    assert is_y(call(channel, request(through(named(digest)), X)))


def test_equal_layers_that_are_written_otherwise_have_other_digests() -> None:
    assert len({digest_of(sent, W, BIAS) for sent in SENT.values()}) == len(SENT)


def twice() -> bytes:
    half = definition().SerializeToString()
    layer = 2 * (b"\x0a" + bytes([len(half)]) + half) + convolution_pb2.Layer(keep=True).SerializeToString()
    rest = convolution_pb2.Convolution(input=header(X.shape)).SerializeToString()
    return rest + b"\x0a" + bytes([len(layer)]) + layer


REFUSED: dict[str, tuple[bytes, str, str]] = {
    "pooling": (
        through(convolution_pb2.Layer(pooling=maximum(2).pooling, keep=True)).SerializeToString(),
        "layers[0].keep",
        "asks to keep a pooling",
    ),
    "a digest": (
        through(convolution_pb2.Layer(digest=ABSENT, keep=True)).SerializeToString(),
        "layers[0].keep",
        "asks to keep a digest",
    ),
    "nothing": (
        through(kept(), convolution_pb2.Layer(keep=True)).SerializeToString(),
        "layers[1]",
        "layers[1] is neither a definition, nor a digest, nor pooling",
    ),
    "a definition sent twice": (twice(), "layers[0].definition", "sent 2 times"),
}


@pytest.mark.parametrize("method", ["Convolve", "Plan"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_one_definition_is_not_kept(channel: grpc.Channel, name: str, method: str) -> None:
    raw, field, text = REFUSED[name]
    said = refused(channel, b"\x0a" + bytes([len(raw)]) + raw, method)
    assert (said.code, said.field) == (grpc.StatusCode.INVALID_ARGUMENT, field)
    assert text in said.text


@pytest.mark.parametrize("method", ["Convolve", "Plan"])
def test_a_layer_that_the_store_cannot_hold_is_refused_by_its_header(
    channel: grpc.Channel, layer_stub: LayerServiceStub, method: str
) -> None:
    large = definition(np.broadcast_to(np.float32(0), (1, 1, 1, BUDGET // 4)), None)
    header = through(kept(large), shape=(1, 1, 1, BUDGET // 4))
    message = request(header) if method == "Convolve" else plan_of(header)
    said = refused(channel, message, method)
    assert (said.code, said.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
    assert said.info.metadata["setting"] == "--layer-budget"
    assert int(said.info.metadata["value"]) == BUDGET + large.ByteSize()
    assert listed(layer_stub) == []


@pytest.mark.parametrize("method", ["Convolve", "Plan"])
def test_an_unknown_digest_is_not_found_and_named(channel: grpc.Channel, method: str) -> None:
    header = through(maximum(1), named(ABSENT))
    said = refused(channel, request(header, X) if method == "Convolve" else plan_of(header), method)
    assert (said.code, said.info.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_LAYER")
    assert said.info.metadata["digest"] == ABSENT
    assert ABSENT in said.text


@pytest.mark.parametrize("digest", ["", "sha256:", ABSENT[:-1], f"{ABSENT}0", ABSENT[7:], f"md5:{ABSENT[7:]}", "\0é"])
def test_what_is_no_digest_is_refused_by_name(channel: grpc.Channel, digest: str) -> None:
    said = refused(channel, request(through(named(digest)), X))
    assert (said.code, said.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONVOLUTION")
    assert said.field.endswith("digest")


def test_a_remembered_plan_keeps_no_layer(channel: grpc.Channel, layer_stub: LayerServiceStub) -> None:
    message = request(through(named(DIGEST)), X)
    for _ in range(2):
        call(channel, keeping())
        assert is_y(call(channel, message))
        delete(layer_stub, DIGEST)
        assert refused(channel, message).code == grpc.StatusCode.NOT_FOUND


def gradients(asked: convolution_pb2.Convolution, *wanted: str) -> convolution_pb2.Convolution:
    asked.gradients.grad_output.CopyFrom(header(Y.shape))
    for name in wanted:
        setattr(asked.gradients, name, True)
    return asked


def tensors(answer: bytes) -> list[NDArray[Any]]:
    response = pb.ConvolveResponse.FromString(answer)
    pairs = zip(response.result.plan.outputs, response.data, strict=True)
    return [np.frombuffer(data, np.float32).reshape(tuple(each.shape)) for each, data in pairs]


@pytest.mark.parametrize("wanted", [["input"], ["weight"], ["bias"], ["input", "weight"]], ids=" and ".join)
def test_gradients_by_digest_are_those_with_the_weights(channel: grpc.Channel, wanted: list[str]) -> None:
    plain = gradients(through(convolution_pb2.Layer(definition=definition())), *wanted)
    whole = tensors(call(channel, request(plain, W, BIAS, X, Y % 3)))
    call(channel, keeping())
    by_digest = tensors(call(channel, request(gradients(through(named(DIGEST)), *wanted), X, Y % 3)))
    assert len(whole) == len(by_digest) == len(wanted)
    for one, other in zip(whole, by_digest, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_what_is_kept_is_not_omitted(channel: grpc.Channel, layer_stub: LayerServiceStub, name: str) -> None:
    header = gradients(through(kept()), "weight")
    getattr(header.layers[0], f"{name}_source").omitted = True
    said = refused(channel, request(header, BIAS if name == "weight" else W, X, Y))
    assert (said.code, said.field) == (grpc.StatusCode.INVALID_ARGUMENT, f"{name}_source")
    assert listed(layer_stub) == []


def test_a_stack_mixes_digests_definitions_and_pooling(channel: grpc.Channel, layer_stub: LayerServiceStub) -> None:
    call(channel, keeping())
    last = np.array([[2, -1, 1]], np.float32).reshape(1, 3, 1, 1)
    plain = convolution_pb2.Layer(definition=definition(last, None))
    expected = (Y * last).sum(1, keepdims=True)[:, :, :2, :2].max((2, 3), keepdims=True)
    answer = call(channel, request(through(named(DIGEST), plain, maximum(2)), last, X))
    np.testing.assert_array_equal(output(answer), expected)
    assert listed(layer_stub) == [DIGEST]
    answer = call(channel, request(through(named(DIGEST), kept(definition(last, None)), maximum(2)), last, X))
    np.testing.assert_array_equal(output(answer), expected)
    second = digest_of(definition(last, None).SerializeToString(), last)
    assert sorted(listed(layer_stub)) == sorted([DIGEST, second])
    answer = call(channel, request(through(named(DIGEST), named(second), maximum(2)), X))
    np.testing.assert_array_equal(output(answer), expected)


@pytest.fixture(scope="module")
def single(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server with one thread, and room for little more than the slow layer."""
    return serve("--backend=reference", "--threads=1", "--layer-budget=170000")


SLOW_DIGEST = digest_of(definition(SLOW_KERNEL, None).SerializeToString(), SLOW_KERNEL)


def alone(weight: NDArray[Any]) -> layer_service_pb2.PutLayerRequest:
    return layer_service_pb2.PutLayerRequest(definition=definition(weight, None), data=[weight.tobytes()])


@pytest.mark.parametrize("how", ["deleted", "evicted"])
def test_calls_under_way_finish_with_a_layer_that_is_gone(single: RunningServer, how: str) -> None:
    slow = through(named(SLOW_DIGEST), shape=SLOW_IMAGE.shape)
    slow.execution.algorithm = convolution_pb2.ALGORITHM_DIRECT
    with grpc.insecure_channel(single.address) as channel, OpenStream(channel) as stream:
        stub = LayerServiceStub(channel)
        assert put(stub, alone(SLOW_KERNEL)).digest == SLOW_DIGEST
        stream.send(item(1, slow, SLOW_IMAGE), item(2, slow, SLOW_IMAGE))  # one runs, the other waits
        until(lambda: metric(single, "convolver_in_flight") == 2, "both to be admitted")
        if how == "deleted":
            delete(stub, SLOW_DIGEST)
        else:
            put(stub, alone(SLOW_KERNEL + 1))
        assert SLOW_DIGEST not in listed(stub)
        assert metric(single, "convolver_in_flight") > 0
        for _ in range(2):
            assert (tensor(stream.next()) == 40_000).all()
        assert refused(channel, request(slow, SLOW_IMAGE)).code == grpc.StatusCode.NOT_FOUND
        stream.send(quick(3))
        assert stream.next().id == 3
