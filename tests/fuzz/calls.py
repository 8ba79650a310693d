"""Every rpc but Hold, through the server's own handlers: what is accepted is computed, and its answer has to be one
that our own client reads.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from tests.fuzz import mutation, seeds
from tests.fuzz.serving import Serving, check_status
from tests.fuzz.target import Target, framed, frames

from convolver.client._answers import stack_plan_answer, unary_reply
from convolver.core.digest import digest_of
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import layer_service_pb2 as layers_pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

DIGEST = digest_of(seeds.definition(), memoryview(seeds.layer_data()), None)

_UNARY: dict[str, tuple[str, type[Message], list[bytes]]] = {
    "GetInfo": ("ConvolutionService", pb.GetInfoRequest, [b"", b"\xa2\x06\x02hi"]),
    "GetLayer": ("LayerService", layers_pb.GetLayerRequest, [b"\x0a\x47" + DIGEST.encode()]),
    "DeleteLayer": ("LayerService", layers_pb.DeleteLayerRequest, [b"\x0a\x47" + DIGEST.encode()]),
    "ListLayers": ("LayerService", layers_pb.ListLayersRequest, [b"\x08\x02", b"\x12\x030-a"]),
}
"""The service, the request's class and its seeds."""


def serving() -> Serving:
    """A server that holds the layer which seeds name."""
    made = Serving()
    assert made.call("LayerService/PutLayer", *_put()) is not None
    return made


def target(name: str) -> Target:
    """The target of that name."""
    if name in _UNARY:
        service, kind, first = _UNARY[name]
        return Target(_unary(f"{service}/{name}"), first, mutation.of_message(kind))
    return _TARGETS[name]()


def _unary(method: str) -> Callable[[bytes], None]:
    server = serving()

    def run(data: bytes) -> None:
        server.call(method, data)
        server.call("LayerService/PutLayer", *_put())  # what was deleted

    return run


def _convolve() -> Target:
    server = serving()

    def run(data: bytes) -> None:
        answers = server.call("ConvolutionService/Convolve", data)
        if answers is not None and not pb.ConvolveRequest.FromString(data).convolution.output_regions:
            unary_reply(answers[0])

    refused = [seed for seed in requests() if server.call("ConvolutionService/Convolve", seed) is None]
    assert not refused, refused
    return Target(run, requests(), mutation.of_message(pb.ConvolveRequest))


def _plan() -> Target:
    server = serving()

    def run(data: bytes) -> None:
        answers = server.call("ConvolutionService/Plan", data)
        if answers is not None and not pb.PlanRequest.FromString(data).convolution.HasField("gradients"):
            stack_plan_answer(answers[0])

    first = [pb.PlanRequest(convolution=convolution).SerializeToString() for convolution in seeds.convolutions()]
    return Target(run, first, mutation.of_message(pb.PlanRequest))


def _stream() -> Target:
    server = serving()

    def run(data: bytes) -> None:
        messages = frames(data)
        answers = server.call("ConvolutionService/ConvolveStream", *messages) or []
        for answer in map(pb.ConvolveStreamResponse.FromString, answers):
            if answer.HasField("status"):
                check_status(answer.status.SerializeToString())

    messages = [
        pb.ConvolveStreamRequest(id=i, convolution=whole.convolution, data=whole.data, timeout_seconds=60)
        for i, whole in enumerate(map(pb.ConvolveRequest.FromString, requests()))
    ]
    first = [framed([a.SerializeToString(), b.SerializeToString()]) for a, b in pairwise(messages)]
    return Target(run, first, mutation.of_messages(pb.ConvolveStreamRequest))


def _chunked() -> Target:
    server = serving()

    def run(data: bytes) -> None:
        answers = server.call("ConvolutionService/ConvolveChunked", *frames(data))
        if answers is not None:
            assert pb.ConvolveChunkedResponse.FromString(answers[-1]).HasField("report")

    return Target(
        run, [framed(_cut(message)) for message in requests()], mutation.of_messages(pb.ConvolveChunkedRequest)
    )


def _put_layer() -> Target:
    server = serving()

    def run(data: bytes) -> None:
        server.call("LayerService/PutLayer", *frames(data))

    return Target(run, [framed(_put()), framed(_with_bias())], mutation.of_messages(layers_pb.PutLayerRequest))


_TARGETS = {
    "Convolve": _convolve,
    "ConvolveStream": _stream,
    "ConvolveChunked": _chunked,
    "Plan": _plan,
    "PutLayer": _put_layer,
}


def requests() -> list[bytes]:
    """ConvolveRequests that are in order."""
    made = [pb.ConvolveRequest(convolution=convolution) for convolution in seeds.convolutions()]
    for request in made:
        mutation.match_data(request)
    return [request.SerializeToString() for request in made]


def _cut(message: bytes) -> list[bytes]:
    """The messages of a ConvolveChunked, its data cut where no tensor ends."""
    whole = pb.ConvolveRequest.FromString(message)
    data = b"".join(whole.data)
    parts = [data[:5], data[5:50], data[50:]]
    rest = [pb.ConvolveChunkedRequest(data=[part]) for part in parts]
    return [each.SerializeToString() for each in [pb.ConvolveChunkedRequest(convolution=whole.convolution), *rest]]


def _put() -> list[bytes]:
    """The messages that put the layer of DIGEST."""
    first = layers_pb.PutLayerRequest(data=[seeds.layer_data()[:7]])
    first.definition.MergeFromString(seeds.definition())
    return [first.SerializeToString(), layers_pb.PutLayerRequest(data=[seeds.layer_data()[7:]]).SerializeToString()]


def _with_bias() -> list[bytes]:
    request = next(map(pb.ConvolveRequest.FromString, filter(_has_bias, requests())))
    definition = request.convolution.layers[0].definition
    return [layers_pb.PutLayerRequest(definition=definition, data=request.data[:2]).SerializeToString()]


def _has_bias(message: bytes) -> bool:
    layers = pb.ConvolveRequest.FromString(message).convolution.layers
    return layers[0].definition.HasField("bias")
