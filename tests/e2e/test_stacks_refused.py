"""Stacks that are wrong: named alike by the SDK before anything is sent, by Plan and by Convolve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import grpc
import numpy as np
import pytest
from tests.contract import ANSWER, FLOAT32, IMAGE, KERNEL, refused

from convolver.client import Client, Conv, Pool
from convolver.core import request_codec
from convolver.core.errors import InvalidConvolution
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.stack import ConvolutionLayer
from convolver.core.tensors import header
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import convolution_service_pb2, tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

NOWHERE = "127.0.0.1:1"
"""Where nobody listens: what is refused there was refused before it was sent."""

REQUESTS = {"Convolve": convolution_service_pb2.ConvolveRequest, "Plan": convolution_service_pb2.PlanRequest}


@pytest.fixture(scope="module")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(autouse=True)
def serves_on(client: Client) -> Iterator[None]:
    yield
    np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)


class Wrong(NamedTuple):
    """A stack, what of its refusal is known, and for gradients those that are wanted with grad_output."""

    field: str
    said: tuple[str, ...]
    layers: Sequence[Conv | Pool]
    input: NDArray[Any] = np.zeros((1, 2, 9, 9), np.float32)
    wanted: Wanted | None = None
    grad_output: NDArray[Any] = np.zeros((1, 3, 9, 9), np.float32)

    def message(self) -> pb.Convolution:
        """As a stranger sends it."""
        layers = [pb.Layer(**{_kind(layer): _encoded(layer)}) for layer in self.layers]  # type: ignore[arg-type]  # one of two
        asked = None if self.wanted is None else (self.wanted, header(self.grad_output, "grad_output"))
        return request_codec.convolution_to_proto(header(self.input, "input"), layers, {}, asked)

    def sdk(self, client: Client) -> None:
        stack = client.stack(self.layers)
        if self.wanted is None:
            stack(self.input)
        else:
            wrt = [name for name in ("input", "weight") if getattr(self.wanted, name)]
            stack.gradients(self.input, self.grad_output, wrt=wrt, bias=self.wanted.bias)


def _kind(layer: Conv | Pool) -> str:
    return "pooling" if isinstance(layer, Pool) else "definition"


def _encoded(layer: Conv | Pool) -> pb.Pooling | pb.LayerDefinition:
    if isinstance(layer, Pool):
        return request_codec.pooling_to_proto(layer.parameters, 2)
    bias = None if layer.bias is None else header(layer.bias, "bias")
    given: Any = layer.parameters
    return request_codec.definition_to_proto(ConvolutionLayer(header(layer.weight, "weight"), bias, given))


def conv(*shape: int, dtype: Any = np.float32, **parameters: Any) -> Conv:  # noqa: ANN401 - as callers write them
    return Conv(np.zeros(shape, dtype), **parameters)


FITS = conv(3, 2, 3, 3, padding=1)
EVERYTHING = Wanted(input=True, weight=True, bias=True)

WRONG: dict[str, Wrong] = {
    "channels of the input": Wrong(
        "layers[0].input.shape[1]", ("layers[0]", "(4, 3, 3, 3)", "(1, 2, 9, 9)", "the input"), [conv(4, 3, 3, 3), FITS]
    ),
    "channels of the layer before": Wrong(
        "layers[2].input.shape[1]",
        ("layers[2]", "(4, 5, 3, 3)", "(1, 3, 4, 4)", "the output of layers[1]"),
        [FITS, Pool("max", 2), conv(4, 5, 3, 3)],
    ),
    "a kernel larger than what is left": Wrong(
        "layers[1].input.shape[2]", ("layers[1]", "(3, 3, 11, 3)", "(1, 3, 9, 9)"), [FITS, conv(3, 3, 11, 3)]
    ),
    "a window larger than what is left": Wrong(
        "layers[1].kernel[0]", ("layers[1] (pooling)", "(1, 3, 9, 9)"), [FITS, Pool("average", 10)]
    ),
    "groups that do not divide": Wrong(
        "layers[1].input.shape[1]", ("layers[1]", "(4, 1, 1, 1)", "(1, 3, 9, 9)"), [FITS, conv(4, 1, 1, 1, groups=2)]
    ),
    "another number of dimensions": Wrong(
        "layers[1].weight.shape", ("layers[1]", "(3, 3, 3)", "1 spatial", "have 2"), [FITS, conv(3, 3, 3)]
    ),
    "a batch that would become channels": Wrong(
        "layers[1].weight.shape",
        ("layers[1]", "(8, 3, 3, 3)", "2 spatial", "have 1"),
        [conv(3, 3, 2), conv(8, 3, 3, 3)],
        np.ones((3, 3, 9), np.float32),
    ),
    "no layers": Wrong("layers", ("0 entries", "1 to 1024"), []),
    "1025 layers": Wrong("layers", ("1025 entries", "1 to 1024"), [Pool("max", 1)] * 1025),
    "two layouts": Wrong(
        "layers[1].layout",
        ("layers[1]", "channels_last", "channels_first"),
        [FITS, conv(3, 3, 3, 1, layout="channels_last")],
    ),
    "two types of weights": Wrong(
        "layers[1].weight.dtype", ("layers[1]", "float64", "float32"), [FITS, conv(3, 3, 1, 1, dtype=np.float64)]
    ),
    "another type of input": Wrong(
        "layers[0].weight.dtype", ("float32", "float16"), [FITS, FITS], np.zeros((1, 2, 9, 9), np.float16)
    ),
    "too much padding of a window": Wrong(
        "layers[1].padding[0]", ("layers[1] (pooling)", "(1, 3, 9, 9)"), [FITS, Pool("max", 2, padding=2)]
    ),
    "a window without a size": Wrong("layers[1].kernel", ("layers[1]",), [FITS, Pool("max")]),
    "the mean of integers": Wrong(
        "layers[0].kind", ("layers[0]", "int32"), [Pool("average", 2)], np.zeros((1, 2, 9, 9), np.int32)
    ),
    "a grad_output of another shape": Wrong(
        "gradients.grad_output.shape",
        ("(1, 3, 4, 4)", "(1, 3, 9, 9)"),
        [FITS, Pool("max", 2)],
        wanted=EVERYTHING,
    ),
    "a grad_output of another type": Wrong(
        "gradients.grad_output.dtype",
        ("float64", "float32"),
        [FITS, conv(3, 3, 1, 1)],
        wanted=EVERYTHING,
        grad_output=np.zeros((1, 3, 9, 9)),
    ),
    "gradients of integers": Wrong(
        "input.dtype",
        ("int64",),
        [conv(3, 2, 3, 3, padding=1, dtype=np.int64), Pool("max", 1)],
        np.zeros((1, 2, 9, 9), np.int64),
        EVERYTHING,
        np.zeros((1, 3, 9, 9), np.int64),
    ),
    "gradients of weights where there are none": Wrong(
        "gradients",
        ("no layer is a convolution",),
        [Pool("average", 3, stride=1, padding=1)],
        wanted=Wanted(input=False, weight=True, bias=False),
        grad_output=np.zeros((1, 2, 9, 9), np.float32),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_named_alike_by_the_sdk_and_both_rpcs(channel: grpc.Channel, name: str) -> None:
    wrong = WRONG[name]
    with Client(NOWHERE) as nobody, pytest.raises(InvalidConvolution) as caught:
        wrong.sdk(nobody)
    for method, kind in REQUESTS.items():
        said = refused(channel, kind(convolution=wrong.message()).SerializeToString(), method)
        assert (said.code, said.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONVOLUTION")
        assert (said.text, said.field) == (caught.value.message, caught.value.field)
    assert caught.value.field == wrong.field
    for part in wrong.said:
        assert part in caught.value.message


def pooled(**lists: list[int]) -> pb.Layer:
    return pb.Layer(pooling=pb.Pooling(**{"kind": pb.POOLING_KIND_MAX, "kernel": [2, 2], **lists}))  # type: ignore[arg-type]  # lists and a kind


def definition(*shape: int, **parameters: Any) -> pb.Layer:  # noqa: ANN401 - any field
    weight = tensor_pb2.Tensor(dtype=FLOAT32, shape=shape)
    return pb.Layer(definition=pb.LayerDefinition(weight=weight, parameters=pb.Parameters(**parameters)))


RAW: dict[str, tuple[pb.Layer, str, str]] = {
    "no kind": (pb.Layer(), "layers[1]", "layers[1] is neither a definition, nor a digest, nor pooling"),
    "no weight": (pb.Layer(definition=pb.LayerDefinition()), "layers[1].weight", "weight is missing"),
    "no kind of pooling": (pb.Layer(pooling=pb.Pooling(kernel=[2, 2])), "layers[1].kind", "layers[1]"),
    "an unknown kind of pooling": (pooled(kind=9), "layers[1].kind", "9"),  # type: ignore[arg-type]  # on purpose
    "one entry of a kernel": (pooled(kernel=[2]), "layers[1].kernel", "1 entries"),
    "three strides": (pooled(stride=[1, 1, 1]), "layers[1].stride", "3 entries"),
    "one entry of padding": (pooled(padding=[1]), "layers[1].padding", "1 entries"),
    "three dilations": (pooled(dilation=[1, 1, 1]), "layers[1].dilation", "3 entries"),
    "an output size beside a kernel": (pooled(output_size=[1, 1]), "layers[1].output_size", "output_size"),
    "a kernel of 0": (pooled(kernel=[2, 0]), "layers[1].kernel[1]", "0"),
    "a stride of 2^62": (pooled(stride=[1, 2**62]), "layers[1].stride[1]", str(2**62)),
    "strides of a convolution": (definition(3, 3, 1, 1, stride=[1]), "layers[1].stride", "layers[1]"),
    "words of a convolution": (definition(3, 3, 1, 1, padding_mode=77), "layers[1].padding_mode", "layers[1]"),
    "an empty weight": (definition(), "layers[1].weight.shape", "layers[1]"),
    "what is no digest": (pb.Layer(digest="sha1:0"), "layers[1].digest", "sha1:0"),
}


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize("name", RAW)
def test_what_the_sdk_never_sends_is_named_too(channel: grpc.Channel, name: str, method: str) -> None:
    layer, field, text = RAW[name]
    message = pb.Convolution(
        layers=[definition(3, 2, 3, 3), layer], input=tensor_pb2.Tensor(dtype=FLOAT32, shape=[1, 2, 9, 9])
    )
    said = refused(channel, REQUESTS[method](convolution=message).SerializeToString(), method)
    assert (said.code, said.field) == (grpc.StatusCode.INVALID_ARGUMENT, field), said.text
    assert text in said.text


@pytest.mark.parametrize("method", REQUESTS)
def test_an_unknown_field_of_a_layer_is_unsupported_by_its_path(channel: grpc.Channel, method: str) -> None:
    message = pb.Convolution(layers=[definition(3, 2, 3, 3), pooled()], input=definition(1, 2, 9, 9).definition.weight)
    message.layers[1].pooling.MergeFromString(b"\xa2\x06\x02hi")  # field 100, length-delimited
    said = refused(channel, REQUESTS[method](convolution=message).SerializeToString(), method)
    assert said.code == grpc.StatusCode.UNIMPLEMENTED
    assert "convolution.layers.pooling.100" in said.text


@pytest.mark.parametrize("method", REQUESTS)
def test_grad_output_and_what_is_wanted_may_not_be_missing(channel: grpc.Channel, method: str) -> None:
    message = pb.Convolution(layers=[pooled(), pooled()], input=definition(1, 2, 9, 9).definition.weight)
    message.gradients.input = True
    said = refused(channel, REQUESTS[method](convolution=message).SerializeToString(), method)
    assert (said.code, said.field) == (grpc.StatusCode.INVALID_ARGUMENT, "gradients.grad_output")
    message.gradients.input = False
    message.gradients.grad_output.CopyFrom(message.input)
    said = refused(channel, REQUESTS[method](convolution=message).SerializeToString(), method)
    assert said.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "none of input, weight and bias" in said.text


def test_a_layer_of_a_shape_is_not_sent() -> None:
    shape = Conv((3, 2, 3, 3))
    with Client(NOWHERE) as nobody, pytest.raises(InvalidConvolution, match="can be planned, not run") as caught:
        nobody.stack([FITS, shape])(np.zeros((1, 2, 9, 9), np.float32))
    assert caught.value.field == "layers[1].weight"
    assert Tensor("float32", shape.weight) == header(np.zeros(shape.weight, np.float32), "weight")
