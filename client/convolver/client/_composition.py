"""Stacks and layers that stay, as requests and answers in bytes, whatever the client's colour."""

from __future__ import annotations

from functools import lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from convolver.client import _client_shared as shared
from convolver.client._destination import destination
from convolver.client._interchange import AnyArray, to_array
from convolver.client._requests import Described, Request, described, enveloped
from convolver.client._stack_layers import Conv, Pool, StackLayer, check_names
from convolver.core import dtypes, gradients, request_codec, stack_plan
from convolver.core.digest import digest_of
from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Tensor
from convolver.core.parameters import LayerParameters, Parameters
from convolver.core.stack import ConvolutionLayer, parse_stack
from convolver.core.tensors import header, to_bytes
from convolver.core.values import number
from convolver.core.wire import join, split
from convolver.v1 import convolution_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.core.stack import Layer


def parted(parameters: Parameters) -> tuple[LayerParameters, Parameters]:
    """A convolution's parameters: those that belong to the layer, and those of a call."""
    own = {name: value for name, value in parameters.items() if name in LayerParameters.__annotations__}
    of_call = {name: value for name, value in parameters.items() if name not in own}
    return cast("LayerParameters", own), cast("Parameters", of_call)


class HeldWeights(StackLayer):
    """A convolution whose weights stay on servers: copies of them, the definition as it is sent, and the digest of all
    that, which names it on every server. `calls` are the parameters of its layer's own calls, and `resend` says whether
    a server that does not know it may be sent it.
    """

    def __init__(
        self,
        weight: AnyArray,
        bias: AnyArray,
        parameters: LayerParameters,
        calls: Parameters | None = None,
        *,
        resend: bool = True,
    ) -> None:
        self.calls, self.resend = calls or {}, resend
        given = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
        arrays = {name: np.array(to_array(value), order="C") for name, value in given.items()}
        self.headers = _Headers(*(header(array, name) for name, array in arrays.items()))
        self.data = [to_bytes(array) for array in arrays.values()]
        self._parameters = parameters
        layer = ConvolutionLayer(*self.headers, cast("Parameters", parameters))
        self.definition = request_codec.definition_to_proto(layer).SerializeToString()
        self.digest = digest_of(self.definition, self.data[0], None if bias is None else self.data[1])

    @property
    def parameters(self) -> LayerParameters:
        """Those that were given, a copy: to change it changes no layer."""
        return self._parameters.copy()

    def __repr__(self) -> str:
        weight = self.headers.weight
        return f"Layer({self.digest[:15]}..., weight={weight.dtype} {weight.shape})"


class _Headers(NamedTuple):
    """Of a convolution's weights."""

    weight: Tensor
    bias: Tensor | None = None


Item = Conv | Pool | HeldWeights

_STREAM_FIELD = pb.ConvolveStreamRequest.DESCRIPTOR.fields_by_name["convolution"].number


class Asked(NamedTuple):
    """The gradients that are wanted, and grad_output."""

    wanted: Wanted
    grad_output: AnyArray


class Composition:
    """Layers one after the other, as requests, in which those that stay are named by their digests.

    `parameters` are those of the call: a layer's own are refused.

    Attributes:
        held: the layers that stay, by digest.
        held_bytes: of all their weights together.
    """

    def __init__(self, layers: Sequence[StackLayer], parameters: Parameters) -> None:
        items = [_item(i, layer) for i, layer in enumerate(layers)]
        check_names(parameters, Parameters.__annotations__)
        for name in parameters:
            if name in LayerParameters.__annotations__:
                raise InvalidConvolution(f"{name} belongs to the layers of a stack, each of which has its own", name)
        self.items, self.parameters = tuple(items), parameters
        self.held = {item.digest: item for item in items if isinstance(item, HeldWeights)}
        self.held_bytes = sum(data.nbytes for item in items if isinstance(item, HeldWeights) for data in item.data)
        # Not of a method: layers that nobody needs any more would wait with their weights for the garbage collector.
        self._remembered = lru_cache(shared.REMEMBERED)(partial(_described, self.items, parameters))

    def request(self, input: AnyArray, asked: Asked | None = None, out: AnyArray = None) -> Request:
        """A request for the output, which is written to `out` where that is given, or for the gradients asked for.

        Raises InvalidConvolution, with the server's own words, for what shapes can decide: nothing is sent then.
        """
        known, data = self._sent(input, asked)
        return Request(known, data, input, destination(out, known.answer[0], data))

    def stream_request(self, number: int, request: Request, timeout: float | None) -> bytes:
        """The same as one of ConvolveStream with that id, for an answer within `timeout` seconds."""
        seconds = None if timeout is None else max(1e-9, timeout)  # none at all is what no request may have
        message = pb.ConvolveStreamRequest(id=number, timeout_seconds=seconds).SerializeToString()
        return join(message + enveloped(request.convolution, _STREAM_FIELD), request.data)

    def whole(self, request: Request) -> Request:
        """A request of these layers again, with the weights of all of them, which the server shall keep."""
        convolution = convolution_pb2.Convolution.FromString(request.convolution)
        data = self._with_weights(convolution, request.data)
        known = request.described._replace(convolution=convolution.SerializeToString())
        return request._replace(described=known, data=data)

    def whole_of_stream(self, message: bytes) -> bytes:
        """The same for a ConvolveStream request."""
        head, entries = split(message)
        request = pb.ConvolveStreamRequest.FromString(head)
        request.ClearField("filler")
        data = self._with_weights(request.convolution, entries)
        return join(request.SerializeToString(), data)

    def plan_request(self, input_shape: Sequence[int], dtype: str | None) -> bytes:
        """A Plan request; without a dtype of the first weights' own, or of float32. Raises as `request`."""
        own = next(filter(None, map(_dtype, self.items)), "float32")
        input = Tensor(dtypes.named(dtype or own).name, tuple(input_shape))
        headers = tuple(_planned_headers(i, item, input) for i, item in enumerate(self.items))
        return enveloped(self._remembered(input, headers, None, by_digest=False).convolution)

    def _with_weights(
        self, convolution: convolution_pb2.Convolution, entries: Sequence[memoryview]
    ) -> list[memoryview]:
        """Puts the layers themselves in place of their digests; the data with their weights."""
        data, left = list[memoryview](), iter(entries)
        for item, layer in zip(self.items, convolution.layers, strict=True):
            if isinstance(item, HeldWeights):
                layer.definition.ParseFromString(item.definition)
                layer.keep = True
                data += item.data
            elif layer.HasField("definition"):
                data += islice(left, 2 if layer.definition.HasField("bias") else 1)
        return [*data, *left]

    def _sent(self, input: AnyArray, asked: Asked | None) -> tuple[Described, list[memoryview]]:
        """The header, and the tensors in their order."""
        x, data, headers = to_array(input), list[memoryview](), list[_Headers | None]()
        for i, item in enumerate(self.items):
            its_headers, its_data = _headers_and_data(i, item)
            headers.append(its_headers)
            data += its_data if not isinstance(item, HeldWeights) else ()
        of_input = header(x, "input")  # before its bytes: objects have none
        data.append(to_bytes(x))
        gradients = None
        if asked:
            grad_output = to_array(asked.grad_output)
            gradients = (asked.wanted, header(grad_output, "grad_output"))
            data.append(to_bytes(grad_output))
        return self._remembered(of_input, tuple(headers), gradients, by_digest=True), data


def stacked(layers: Sequence[StackLayer], parameters: Parameters) -> Composition:
    """The composition of a stack. Raises InvalidConvolution as that does, and for a layer with parameters of its own
    calls: the stack has its own, and these would be left out in silence.
    """
    for i, layer in enumerate(layers):
        for name in layer.calls if isinstance(layer, HeldWeights) else ():
            text = f"layers[{i}] was made with {name}, which belongs to calls: give it to the stack"
            raise InvalidConvolution(text, f"layers[{i}].{name}")
    return Composition(layers, parameters)


def may_resend(layers: Sequence[StackLayer]) -> bool:
    """Whether all layers that stay may be sent to who does not know them."""
    return all(layer.resend for layer in layers if isinstance(layer, HeldWeights))


def _item(i: int, layer: StackLayer) -> Item:
    if isinstance(layer, Item):
        return layer
    kind = type(layer).__name__
    raise InvalidConvolution(
        f"layers[{i}] is a {kind}; it must be Conv, Pool or what this client's `layer` made", f"layers[{i}]"
    )


def _described(
    items: Sequence[Item],
    parameters: Parameters,
    input: Tensor,
    headers: tuple[_Headers | None, ...],
    asked: tuple[Wanted, Tensor] | None,
    *,
    by_digest: bool,
) -> Described:
    layers = list(map(_layer, items, headers))
    steps = parse_stack(input, layers, _common(parameters))
    if asked and len(steps) == 1 and isinstance(steps[0], Geometry):
        gradients.check(steps[0], asked[1])
    elif asked:
        stack_plan.check(steps, *asked)
    messages = []
    for item, layer in zip(items, layers, strict=True):
        if isinstance(item, HeldWeights) and by_digest:
            messages.append(convolution_pb2.Layer(digest=item.digest))
        elif isinstance(layer, ConvolutionLayer):
            messages.append(convolution_pb2.Layer(definition=request_codec.definition_to_proto(layer)))
        else:
            messages.append(convolution_pb2.Layer(pooling=request_codec.pooling_to_proto(layer, steps[0].ndim)))
    convolution = request_codec.convolution_to_proto(input, messages, parameters, asked)
    return described(convolution.SerializeToString(), steps, asked)


def _common(parameters: Parameters) -> Parameters:
    """What of a call's parameters the layers are parsed with."""
    given: Parameters = {}
    if "overflow" in parameters:
        given["overflow"] = parameters["overflow"]
    if "output_dtype" in parameters:
        given["output_dtype"] = parameters["output_dtype"]
    return given


def _layer(item: Item, headers: _Headers | None) -> Layer:
    if isinstance(item, Pool):
        return item.parameters
    assert headers is not None, "a convolution has weights"  # noqa: S101
    return ConvolutionLayer(*headers, cast("Parameters", item.parameters))


def _headers_and_data(i: int, item: Item) -> tuple[_Headers | None, list[memoryview]]:
    if isinstance(item, Pool):
        return None, []
    if isinstance(item, HeldWeights):
        return item.headers, item.data
    if item.is_shape:
        text = f"layers[{i}].weight is the shape {item.weight}: such a layer can be planned, not run"
        raise InvalidConvolution(text, f"layers[{i}].weight")
    given = {"weight": item.weight} if item.bias is None else {"weight": item.weight, "bias": item.bias}
    arrays = {name: to_array(value) for name, value in given.items()}
    headers = _Headers(*(header(array, f"layers[{i}].{name}") for name, array in arrays.items()))
    return headers, list(map(to_bytes, arrays.values()))


def _dtype(item: Item) -> str | None:
    """That of its weight, where it has one."""
    if isinstance(item, HeldWeights):
        return item.headers.weight.dtype
    return None if isinstance(item, Pool) or item.is_shape else header(to_array(item.weight), "weight").dtype


def _planned_headers(i: int, item: Item, input: Tensor) -> _Headers | None:
    """Of a layer as it is, or would be in the input's type where its shape is all there is."""
    if not isinstance(item, Conv) or not item.is_shape:
        return _headers_and_data(i, item)[0]
    shape, transposed = item.weight, bool(item.parameters.get("transposed"))
    if item.parameters.get("layout") == "channels_last":
        shape = (*reversed(shape[-2:]), *shape[:-2])
    given = item.parameters.get("groups")
    groups = 1 if given is None else number(given, f"layers[{i}].groups", low=1)
    channels = shape[transposed] * (groups if transposed else 1) if len(shape) > 2 else 0
    bias = Tensor(input.dtype, (channels,)) if item.bias and channels else None
    return _Headers(Tensor(input.dtype, item.weight), bias)
