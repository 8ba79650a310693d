"""Layers that stay on real servers: what travels, what is held, and what a caller sees of it."""

from __future__ import annotations

import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import ml_dtypes
import numpy as np
import pytest
from tests.client.async_calls import asynchronously
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.client import AsyncClient, Client, Conv, Pool, ServiceUnavailable
from convolver.core.errors import InvalidConvolution, LimitExceeded, UnknownLayer
from convolver.v1 import layer_service_pb2
from convolver.v1.convolution_pb2 import LayerDefinition
from convolver.v1.layer_service_pb2_grpc import LayerServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    from convolver.client import AsyncLayer

BUDGET = 2**20
WEIGHT = np.arange(-40, 41, dtype=np.float32).reshape(9, 1, 3, 3)
BIAS = np.arange(9, dtype=np.float32)
INPUT = np.arange(2 * 1 * 8 * 8, dtype=np.float32).reshape(2, 1, 8, 8)
LARGE, THIN = np.ones((64, 64, 3, 3), np.float32), np.ones((1, 64, 3, 3), np.float32)
"""A weight of 147 456 bytes and an input of 2304."""


@pytest.fixture(scope="module")
def alone(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server that nobody else calls."""
    return serve("--backend=reference", f"--layer-budget={BUDGET}")


@pytest.fixture
def client(alone: RunningServer) -> Iterator[Client]:
    """A client of that server, which holds nothing."""
    with Client(alone.address) as client:
        for layer in client.layers():
            client.delete_layer(layer.digest)
        yield client


def received(running: RunningServer) -> float:
    return metric(running, "convolver_received_bytes_total")


def test_the_weights_travel_with_the_first_call_alone(client: Client, alone: RunningServer) -> None:
    layer = client.layer(LARGE)
    before = received(alone)
    first = layer(THIN)
    after_first = received(alone)
    for _ in range(10):
        np.testing.assert_array_equal(layer(THIN), first)
    assert LARGE.nbytes < after_first - before < LARGE.nbytes + 2 * THIN.nbytes + 2000
    assert received(alone) - after_first < 10 * (THIN.nbytes + 500)


PARAMETERS: dict[str, dict[str, Any]] = {
    "none": {},
    "geometry": {"stride": 2, "padding": ((1, 2), (0, 3)), "dilation": (1, 2), "padding_mode": "reflect"},
    "word": {"padding": "same", "activation": "gelu"},
    "flipped": {"flip": True, "input_dilation": 2, "padding": "full"},
    "of the call": {"backend": "reference", "algorithm": "fft", "output_dtype": "float64", "timeout": 30.0},
}


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS)
def test_the_output_is_that_of_convolve_bit_for_bit(client: Client, parameters: dict[str, Any]) -> None:
    layer, expected = client.layer(WEIGHT, BIAS, **parameters), client.run(INPUT, WEIGHT, BIAS, **parameters)
    for _ in range(2):  # sent with the layer, then by its digest
        answer = layer.run(INPUT)
        np.testing.assert_array_equal(answer.output, expected.output, strict=True)
        assert answer.plan == expected.plan
    assert layer.plan(INPUT.shape) == expected.plan


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "int16", "complex64", "bool"])
def test_every_kind_of_type_may_stay(client: Client, dtype: str) -> None:
    weight, image = (
        array.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for array in (WEIGHT, INPUT % 16)
    )
    layer, expected = client.layer(weight, padding=1), client.convolve(image, weight, padding=1)
    for _ in range(2):
        output = layer(image)
        assert output.dtype == expected.dtype
        np.testing.assert_array_equal(output.view(np.uint8), expected.view(np.uint8))
    assert client.held_layer(layer.digest).weight == (dtype, WEIGHT.shape)


def test_transposed_layers_stay(client: Client) -> None:
    image = np.arange(2 * 9 * 4 * 4, dtype=np.float32).reshape(2, 9, 4, 4)
    layer = client.layer(WEIGHT, transposed=True, stride=2, output_padding=1)
    expected = client.conv_transpose2d(image, WEIGHT, stride=2, output_padding=1)
    np.testing.assert_array_equal(layer(image), expected, strict=True)


def test_the_weights_are_those_of_when_the_layer_was_made(client: Client) -> None:
    kernel = KERNEL.copy()
    layer = client.layer(kernel[..., ::-1][..., ::-1])
    kernel[:] = 0
    np.testing.assert_array_equal(layer(IMAGE), ANSWER)


def test_the_digest_follows_from_the_definition_and_the_bytes(client: Client) -> None:
    layer = client.layer(WEIGHT, BIAS, stride=2)
    definition = layer.held.definition
    message = struct.pack("<Q", len(definition)) + definition + WEIGHT.tobytes() + BIAS.tobytes()
    assert layer.digest == f"sha256:{hashlib.sha256(message).hexdigest()}"
    layer(INPUT)
    with grpc.insecure_channel(client.address) as channel:
        found = LayerServiceStub(channel).GetLayer(layer_service_pb2.GetLayerRequest(digest=layer.digest)).layer
    assert (found.digest, found.definition) == (layer.digest, LayerDefinition.FromString(definition))


def test_what_is_held_is_what_was_made(client: Client) -> None:
    layer = client.layer(WEIGHT, BIAS, stride=2)
    layer(INPUT)
    [held] = client.layers()
    assert held == client.held_layer(layer.digest)._replace(idle_seconds=held.idle_seconds)
    assert (held.digest, held.weight, held.bias) == (layer.digest, ("float32", (9, 1, 3, 3)), ("float32", (9,)))
    assert held.parameters["stride"] == (2, 2)
    assert held.bytes >= WEIGHT.nbytes + BIAS.nbytes
    assert 0 <= held.idle_seconds < 60


def test_a_digest_is_one_layers_alone(client: Client) -> None:
    layers = [client.layer(KERNEL), client.layer(KERNEL, stride=2), client.layer(KERNEL + 1), client.layer(KERNEL[0:1])]
    assert len({layer.digest for layer in layers}) == 3
    assert layers[0].digest == layers[3].digest


def test_without_resend_an_unknown_layer_is_an_error(client: Client) -> None:
    layer = client.layer(KERNEL, resend=False)
    with pytest.raises(UnknownLayer, match=layer.digest) as caught:
        layer(IMAGE)
    assert caught.value.digest == layer.digest
    with pytest.raises(UnknownLayer, match=layer.digest):
        next(layer.map([IMAGE]))
    with pytest.raises(UnknownLayer, match=layer.digest):
        client.stack([layer], resend=False)(IMAGE)
    layer.put()
    np.testing.assert_array_equal(layer(IMAGE), ANSWER)


def test_a_layer_that_was_put_is_not_sent_again(client: Client, alone: RunningServer) -> None:
    layer = client.layer(np.tile(LARGE, (6, 1, 1, 1)))  # 864 KB: in several pieces
    layer.put()
    before = received(alone)
    assert layer(THIN).shape == (1, 384, 1, 1)
    assert received(alone) - before < THIN.nbytes + 500


def test_a_layer_that_the_server_forgot_is_sent_again(client: Client, alone: RunningServer) -> None:
    layer = client.layer(LARGE)
    layer(THIN)
    client.delete_layer(layer.digest)
    for call in (client.held_layer, client.delete_layer):
        with pytest.raises(UnknownLayer, match=layer.digest):
            call(layer.digest)
    assert client.layers() == []
    before = received(alone)
    layer(THIN)
    assert received(alone) - before > LARGE.nbytes
    assert [held.digest for held in client.layers()] == [layer.digest]


def test_a_layer_outlives_its_server(serve: Callable[..., RunningServer]) -> None:
    first = serve("--backend=reference")
    with Client(first.address) as client:
        layer = client.layer(KERNEL)
        np.testing.assert_array_equal(layer(IMAGE), ANSWER)
        first.stop()
        second = serve("--backend=reference", listen=first.address)
        assert second.address == first.address

        def is_back() -> bool:
            try:
                return bool(client.info().backends)
            except ServiceUnavailable:
                return False

        until(is_back, "the connection to be made again")
        assert client.layers() == []
        np.testing.assert_array_equal(layer(IMAGE), ANSWER)
        assert [held.digest for held in client.layers()] == [layer.digest]


def test_layers_are_listed_beyond_a_page_the_latest_used_first(client: Client) -> None:
    layers = [client.layer(np.full((1, 1, 1), number, np.int64)) for number in range(1003)]
    for layer in layers:
        layer(np.ones((1, 1, 1), np.int64))
    layers[0](np.ones((1, 1, 1), np.int64))
    expected = [layer.digest for layer in (layers[0], *reversed(layers[1:]))]
    assert [held.digest for held in client.layers()] == expected


def test_a_layer_larger_than_the_store_is_refused(client: Client) -> None:
    layer = client.layer(np.ones((1, 1, 1 + BUDGET // 4), np.float32))
    for call in (layer.put, lambda: layer(np.ones((1, 1, 1 + BUDGET // 4), np.float32))):
        with pytest.raises(LimitExceeded, match="--layer-budget") as caught:
            call()
        assert (caught.value.limit, caught.value.setting) == (BUDGET, "--layer-budget")


def test_gradients_are_those_of_the_client(client: Client) -> None:
    grad_output = np.ones((2, 9, 6, 6), np.float32)
    layer = client.layer(WEIGHT, BIAS)
    for _ in range(2):
        found = layer.gradients(INPUT, grad_output, bias=True)
        expected = client.gradients(INPUT, WEIGHT, grad_output, bias=True)
        for mine, theirs in zip(found[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(mine, theirs, strict=True)
    only = layer.gradients(INPUT, grad_output, wrt="weight")
    assert (only.input, only.bias) == (None, None)
    np.testing.assert_array_equal(only.weight, expected.weight)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e5m2"])
def test_torch_tensors_go_in_and_come_out(client: Client, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is what is tested")
    image, weight, answer = (torch.from_numpy(array).to(getattr(torch, dtype)) for array in (IMAGE, KERNEL, ANSWER))
    layer = client.layer(weight)
    assert layer(image).dtype == weight.dtype
    assert torch.equal(layer(image).float(), answer.float())


def test_a_layer_may_be_one_of_a_stack(client: Client, alone: RunningServer) -> None:
    layer = client.layer(LARGE)
    twice = client.layer(np.full((1, 1, 1, 1), 2, np.float32))
    stack = client.stack([layer, Conv(np.ones((1, 64, 1, 1), np.float32)), twice])
    stack(THIN)
    before = received(alone)
    np.testing.assert_array_equal(stack(THIN), np.full((1, 1, 1, 1), 2 * 64 * 64 * 9, np.float32))
    assert received(alone) - before < THIN.nbytes + 1500
    assert {held.digest for held in client.layers()} == {layer.digest, twice.digest}


WRONG: dict[str, tuple[str, Callable[[Client | AsyncClient], object]]] = {
    "a name": ("strid", lambda client: client.layer(KERNEL, strid=2)),  # type: ignore[call-arg] # is what is tested
    "a word": ("activation", lambda client: client.layer(KERNEL, activation="no")),  # type: ignore[arg-type] # likewise
    "a type": ("weight", lambda client: client.layer(KERNEL.astype(object))),
}


@pytest.mark.parametrize(("field", "make"), WRONG.values(), ids=WRONG)
def test_what_no_layer_can_have_is_refused_when_it_is_made(
    field: str, make: Callable[[Client | AsyncClient], object]
) -> None:
    for client in (Client("127.0.0.1:1"), AsyncClient("127.0.0.1:1")):
        with pytest.raises(InvalidConvolution, match=field) as caught:
            make(client)
        assert caught.value.field == field


def test_a_layer_shows_what_it_is() -> None:
    layer, other = Client("127.0.0.1:1").layer(KERNEL), AsyncClient("127.0.0.1:1").layer(KERNEL)
    assert repr(layer) == f"Layer({layer.digest[:15]}..., weight=float32 (1, 1, 2, 2))"
    assert repr(other) == f"Async{layer!r}"
    stack = Client("127.0.0.1:1").stack([layer, Pool("max", 2)])
    assert repr(stack) == f"Stack([{layer!r}, Pool(kind='max', kernel=2)])"


def test_the_layer_of_a_closed_client_says_so(alone: RunningServer) -> None:
    with Client(alone.address) as client:
        layer = client.layer(KERNEL)
        layer(IMAGE)
    for call in (lambda: layer(IMAGE), layer.put, lambda: layer.plan(IMAGE.shape), lambda: list(layer.map([IMAGE]))):
        with pytest.raises(RuntimeError, match=r"^the client is closed$"):
            call()


def test_threads_may_share_a_layer(client: Client) -> None:
    layer = client.layer(KERNEL)
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda number: layer(number * IMAGE), range(160)))
    np.testing.assert_array_equal(answers, [number * ANSWER for number in range(160)])


def test_tasks_may_share_a_layer(client: Client) -> None:
    async def calls(other: AsyncClient) -> list[NDArray[Any]]:
        layer: AsyncLayer = other.layer(KERNEL)
        await layer.put()
        first = await layer(IMAGE)
        await other.delete_layer(layer.digest)
        return [first, await layer(IMAGE), *[output async for output in layer.map([IMAGE, IMAGE])]]

    np.testing.assert_array_equal(asynchronously(client.address, calls), [ANSWER] * 4)
