"""LayerService as a client calls it, whatever its colour: requests and answers as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

from convolver.client import _client_shared as shared
from convolver.core import request_codec
from convolver.core.chunks import chunks
from convolver.core.errors import InvalidConvolution, shown
from convolver.core.wire import join
from convolver.v1 import convolution_pb2
from convolver.v1 import layer_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convolver.client._composition import HeldWeights
    from convolver.core.operation import Tensor
    from convolver.core.parameters import Parameters

PAGE = 1000
"""Layers of one answer."""


class HeldLayer(NamedTuple):
    """A layer that a server holds: the headers (dtype, shape) of its weights, its parameters, the bytes that it takes
    of the store, and the seconds since its last use.
    """

    digest: str
    weight: Tensor
    bias: Tensor | None
    parameters: Parameters
    bytes: int
    idle_seconds: float


def put_requests(held: HeldWeights) -> Iterator[bytes]:
    """The messages of one PutLayer."""
    definition = convolution_pb2.LayerDefinition.FromString(held.definition)
    yield pb.PutLayerRequest(definition=definition).SerializeToString()
    for data in chunks(held.data):
        yield join(b"", data, filler=None)


def list_request(token: str) -> bytes:
    """A ListLayers request for the page of that token."""
    return pb.ListLayersRequest(page_size=PAGE, page_token=token).SerializeToString()


def list_answer(response: bytes) -> tuple[list[HeldLayer], str]:
    """The layers of one page, and the token of the next, empty after the last."""
    with shared.blaming_the_server():
        message = pb.ListLayersResponse.FromString(response)
        return list(map(_held, message.layers)), message.next_page_token


def get_request(digest: str) -> bytes:
    """A GetLayer request."""
    return pb.GetLayerRequest(digest=_text(digest)).SerializeToString()


def get_answer(response: bytes) -> HeldLayer:
    """The layer."""
    with shared.blaming_the_server():
        return _held(pb.GetLayerResponse.FromString(response).layer)


def delete_request(digest: str) -> bytes:
    """A DeleteLayer request."""
    return pb.DeleteLayerRequest(digest=_text(digest)).SerializeToString()


def _held(message: pb.HeldLayer) -> HeldLayer:
    weight, bias, parameters = request_codec.definition_from_proto(message.definition)
    given = {name: value for name, value in parameters.items() if value is not None}
    return HeldLayer(message.digest, weight, bias, cast("Parameters", given), message.bytes, message.idle_seconds)


def _text(digest: object) -> str:
    """Raises InvalidConvolution where it is no text; the server says what is wrong with one."""
    if not isinstance(digest, str):
        raise InvalidConvolution(f"digest is {shown(digest)}; it must be that of a layer, as text", "digest")
    return digest
