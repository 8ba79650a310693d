"""What ConvolveChunked answers is what Convolve answers, whatever the borders of messages are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import call, request
from tests.server import kept_layers
from tests.server.chunked_calls import OpenCall, chunks, data_of, first, more, random_borders, whole
from tests.server.layer_calls import metric

from convolver.core import request_codec
from convolver.core.dtypes import TABLE
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.tensors import header
from convolver.v1 import convolution_pb2, layer_service_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from tests.conftest import RunningServer
    from tests.server.chunked_calls import Answer

    from convolver.v1.convolution_pb2 import Convolution

RNG = np.random.default_rng(0)

Case = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]

CASES: dict[str, Case] = {
    "one item": ((1, 3, 9, 8), (4, 3, 3, 3), {"padding": 1}),
    "unbatched": ((3, 9, 8), (4, 3, 3, 3), {}),
    "signal": ((2, 2, 300), (4, 1, 5), {"groups": 2, "stride": 2}),
    "volume": ((1, 2, 6, 6, 6), (3, 2, 3, 3, 3), {}),
    "no items": ((0, 3, 9, 8), (4, 3, 3, 3), {}),
    "transposed": ((2, 3, 5, 5), (3, 4, 3, 3), {"transposed": True, "stride": 2}),
    "items in pieces": ((9, 3, 200, 200), (8, 3, 3, 3), {"padding": "same"}),
    "rows in pieces": ((1, 1, 1800, 1024), (1, 1, 5, 3), {"padding": 2}),
    "rows in pieces, channels last": ((2, 900, 300, 4), (3, 3, 4, 4), {"layout": "channels_last", "stride": (2, 1)}),
    "transposed in pieces": ((6, 3, 160, 160), (3, 4, 3, 3), {"transposed": True, "stride": 2}),
}
DTYPES = ["bool", "int8", "uint64", "bfloat16", "float16", "float8_e4m3fn", "float64", "complex64", "complex128"]


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    """A channel that takes Convolve's large answers too."""
    with grpc.insecure_channel(server.address, options=[("grpc.max_receive_message_length", 2**26)]) as channel:
        yield channel


def drawn(shape: tuple[int, ...], dtype: str = "float32") -> NDArray[Any]:
    """Small integers, whose sums are exact in any order."""
    return RNG.integers(0, 3, shape).astype(TABLE[dtype].numpy)


def biased(case: Case, dtype: str = "float32") -> tuple[Convolution, list[NDArray[Any]]]:
    """A request for it with a bias, and its tensors in their order."""
    shape, weight_shape, parameters = case
    x, w = drawn(shape, dtype), drawn(weight_shape, dtype)
    outputs = weight_shape[1] if parameters.get("transposed") else weight_shape[0]
    b = drawn((weight_shape[-1] if parameters.get("layout") else outputs,), dtype)
    heads = (header(x, "input"), header(w, "weight"), header(b, "bias"))
    given: Any = {**parameters, "output_dtype": dtype}
    return request_codec.single_to_proto(*heads, given), [w, b, x]


def check_equal(channel: grpc.Channel, asked: Convolution, arrays: list[NDArray[Any]], answer: Answer) -> None:
    """The answer is Convolve's, to the bit."""
    alone = pb.ConvolveResponse.FromString(call(channel, request(asked, *arrays)))
    assert answer.plan == alone.result.plan
    assert answer.data == b"".join(alone.data)
    assert answer.report.device == alone.result.report.device
    assert answer.report.batch_size == 1
    assert answer.report.seconds.compute > 0


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_that_of_convolve(channel: grpc.Channel, backend: str, name: str) -> None:
    asked, arrays = biased(CASES[name])
    asked.execution.backend = backend
    answer = whole(channel, [first(asked), *chunks(data_of(*arrays))])
    check_equal(channel, asked, arrays, answer)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["one item", "items in pieces"])
def test_every_type_comes_and_goes(channel: grpc.Channel, name: str, dtype: str) -> None:
    asked, arrays = biased(CASES[name], dtype)
    answer = whole(channel, [first(asked), *chunks(data_of(*arrays))])
    check_equal(channel, asked, arrays, answer)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["one item", "no items", "items in pieces", "rows in pieces, channels last"])
def test_borders_of_messages_and_entries_mean_nothing(channel: grpc.Channel, name: str, seed: int) -> None:
    asked, arrays = biased(CASES[name])
    data = data_of(*arrays)
    start = min(seed * 100, len(data))  # what the first message has
    messages = [first(asked, data[:start]), *random_borders(data[start:], np.random.default_rng(seed))]
    check_equal(channel, asked, arrays, whole(channel, messages))


def test_bytes_may_come_one_by_one(channel: grpc.Channel) -> None:
    asked, arrays = biased(((1, 2, 5, 5), (2, 2, 3, 3), {}))
    answer = whole(channel, [first(asked), more(), *chunks(data_of(*arrays), 1), more(b"", b"")])
    check_equal(channel, asked, arrays, answer)


def test_all_may_come_in_the_first_message_and_its_fields_in_any_order(channel: grpc.Channel) -> None:
    asked, arrays = biased(CASES["one item"])
    data = data_of(*arrays)
    reversed_fields = more(data) + pb.ConvolveChunkedRequest(filler=bytes(7), convolution=asked).SerializeToString()
    for message in (first(asked, data), first(asked, *(array.tobytes() for array in arrays)), reversed_fields):
        check_equal(channel, asked, arrays, whole(channel, [message]))


@pytest.mark.parametrize("shape", [(2, 3, 9, 8), (9, 3, 200, 200)], ids=str)
def test_gradients_are_those_of_convolve(channel: grpc.Channel, backend: str, shape: tuple[int, ...]) -> None:
    x, w, g = drawn(shape), drawn((4, 3, 3, 3)), drawn((shape[0], 4, shape[2] - 2, shape[3] - 2))
    heads = (header(x, "input"), header(w, "weight"), None)
    every = Wanted(input=True, weight=True, bias=True)
    asked = request_codec.single_to_proto(*heads, {"backend": backend}, (every, header(g, "grad_output")))
    check_equal(channel, asked, [w, x, g], whole(channel, [first(asked), *chunks(data_of(w, x, g))]))
    weight_alone = Wanted(input=False, weight=True, bias=False)  # for which the weight's values are left out
    asked = request_codec.single_to_proto(*heads, {"backend": backend}, (weight_alone, header(g, "grad_output")))
    check_equal(channel, asked, [x, g], whole(channel, [first(asked), *chunks(data_of(x, g))]))


def test_a_stack_is_that_of_convolve(channel: grpc.Channel, backend: str) -> None:
    asked = kept_layers.through(
        convolution_pb2.Layer(definition=kept_layers.definition()), kept_layers.maximum(2), shape=(64, 2, 90, 90)
    )
    asked.execution.backend = backend
    x = drawn((64, 2, 90, 90))
    arrays = [kept_layers.W, kept_layers.BIAS, x]
    check_equal(channel, asked, arrays, whole(channel, [first(asked), *chunks(data_of(*arrays))]))


@pytest.mark.parametrize("items", [1, 3000], ids=["whole", "in pieces"])
def test_layers_are_kept_and_named_by_their_digest(layer_channel: grpc.Channel, layer_stub: Any, items: int) -> None:  # noqa: ANN401 - a stub
    assert not layer_stub.ListLayers(layer_service_pb2.ListLayersRequest()).layers
    x = np.repeat(kept_layers.X, items, 0)
    asked = kept_layers.through(kept_layers.kept(), shape=x.shape)
    data = data_of(kept_layers.W, kept_layers.BIAS, x)
    expected = np.repeat(kept_layers.Y.astype(np.float32), items, 0).tobytes()
    assert whole(layer_channel, [first(asked), *chunks(data)]).data == expected
    (held,) = layer_stub.ListLayers(layer_service_pb2.ListLayersRequest()).layers
    sent = kept_layers.definition().SerializeToString()
    assert held.digest == kept_layers.digest_of(sent, kept_layers.W, kept_layers.BIAS)
    asked = kept_layers.through(kept_layers.named(held.digest), shape=x.shape)
    assert whole(layer_channel, [first(asked), *chunks(x.tobytes())]).data == expected


def fft(shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> Convolution:
    tensors = (Tensor("float32", shape), Tensor("float32", weight_shape))
    return request_codec.single_to_proto(*tensors, None, {"backend": "reference"})


def test_an_fft_of_what_is_not_finite_is_direct_in_the_end(channel: grpc.Channel, server: RunningServer) -> None:
    x, w = drawn((1, 1, 600, 600)), drawn((1, 1, 31, 31))
    asked = fft(x.shape, w.shape)
    planned = whole(channel, [first(asked), *chunks(data_of(w, x))]).plan
    assert planned.layers[0].algorithm == convolution_pb2.ALGORITHM_FFT
    x[0, 0, 3, 5] = np.nan
    again = metric(server, "convolver_replanned_total")
    answer = whole(channel, [first(asked), *chunks(data_of(w, x))])
    assert metric(server, "convolver_replanned_total") == again + 1
    check_equal(channel, asked, [w, x], answer)
    assert answer.plan.layers[0].algorithm == convolution_pb2.ALGORITHM_DIRECT


EARLY: dict[str, Case] = {
    "items": ((12, 3, 300, 300), (4, 3, 3, 3), {}),
    "rows": ((1, 1, 4096, 1024), (1, 1, 3, 3), {}),
}


@pytest.mark.parametrize("name", EARLY)
def test_an_answer_starts_before_the_data_has_come(channel: grpc.Channel, backend: str, name: str) -> None:
    asked, arrays = biased(EARLY[name])
    asked.execution.backend = backend
    messages = chunks(data_of(*arrays))
    half = len(messages) // 2 + 1
    with OpenCall(channel, first(asked), *messages[:half]) as opened:
        head, taken = opened.next(), b""
        size = int(np.prod(head.result.plan.outputs[0].shape)) * 4
        while len(taken) < size // 4:
            taken += b"".join(opened.next().data)
        opened.send(*messages[half:])
        opened.close()
        rest = list(opened)
    alone = pb.ConvolveResponse.FromString(call(channel, request(asked, *arrays)))
    assert taken + b"".join(part for each in rest for part in each.data) == b"".join(alone.data)


def test_a_plan_comes_before_any_data_where_there_are_pieces(channel: grpc.Channel) -> None:
    asked, _ = biased(EARLY["items"])
    with OpenCall(channel, first(asked)) as opened:
        assert opened.next().result.plan.outputs[0].shape == [12, 4, 298, 298]
