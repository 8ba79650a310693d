"""convolver.v1.LayerService over bytes, as ConvolutionService: no serialisers, one table of errors."""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc

from convolver.core.errors import InvalidConvolution, shown
from convolver.core.wire import join, split
from convolver.server import metrics
from convolver.server.chunks import Messages, unless_stalled, with_data
from convolver.server.incoming_layer import IncomingLayer
from convolver.server.messages import known
from convolver.v1 import layer_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from convolver.server.calls import Calls
    from convolver.server.layers import HeldLayer, LayerStore

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["LayerService"]

DEFINITION_FIELD = pb.PutLayerRequest.DEFINITION_FIELD_NUMBER

LARGEST_PAGE = 2**21
"""Bytes of definitions after which a page ends: a client without options reads messages of 4 MiB."""

DEFAULT_PAGE, MOST_OF_A_PAGE = 100, 1000

_Context = grpc.aio.ServicerContext[bytes, bytes]


class LayerService:
    """The store's rpcs. Get and List are no use of a layer."""

    def __init__(self, layers: LayerStore, calls: Calls, idle_seconds: float) -> None:
        self._layers, self._calls, self._idle = layers, calls, idle_seconds
        self._key = secrets.token_bytes(32)
        self._hashing = ThreadPoolExecutor(2, thread_name_prefix="layers")  # gigabytes, behind which no plan may wait

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        table: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "PutLayer": grpc.stream_unary_rpc_method_handler(self.put_layer),
            "GetLayer": grpc.unary_unary_rpc_method_handler(self.get_layer),
            "ListLayers": grpc.unary_unary_rpc_method_handler(self.list_layers),
            "DeleteLayer": grpc.unary_unary_rpc_method_handler(self.delete_layer),
        }
        return grpc.method_handlers_generic_handler(DESCRIPTOR.full_name, table)

    async def put_layer(self, requests: AsyncIterator[bytes], context: _Context) -> bytes:
        """Holds the layer that comes in these messages."""
        self._calls.follow(context)
        receiver = _Receiver(self._layers)
        try:
            taking = self._calls.unless_draining(receiver.take(Messages(requests, self._idle)))
            if await unless_stalled(taking, context):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is draining: try another")
            loop = asyncio.get_running_loop()
            return _one(await loop.run_in_executor(self._hashing, receiver.put))
        finally:
            receiver.close()

    async def get_layer(self, request: bytes, _context: _Context) -> bytes:
        """What is held under a digest."""
        return _one(self._layers.find(known(pb.GetLayerRequest, request).digest))

    async def list_layers(self, request: bytes, _context: _Context) -> bytes:
        """A page of what is held: what was used before the last layer of the page before."""
        asked = known(pb.ListLayersRequest, request)
        most, before = _page_size(asked.page_size), self._position(asked.page_token)
        left = [(use, layer) for use, layer in self._layers.by_use() if use < before]
        page = left[: _page([layer for _, layer in left[:most]])]
        token = self._token(str(page[-1][0])) if len(page) < len(left) else ""
        header = pb.ListLayersResponse(next_page_token=token).SerializeToString()
        return join(header, [_encoded(layer) for _, layer in page], field=1, filler=None)

    async def delete_layer(self, request: bytes, _context: _Context) -> bytes:
        """Lets go of a layer."""
        self._layers.delete(known(pb.DeleteLayerRequest, request).digest)
        return pb.DeleteLayerResponse().SerializeToString()

    def _token(self, position: str) -> str:
        """A position that this process, and no other, gave away."""
        return f"{position}-{hmac.digest(self._key, position.encode(), 'sha256').hex()}"

    def _position(self, token: str) -> float:
        """The `use` that a page's layers are below. Raises InvalidConvolution for a token that is none of ours."""
        position = token.partition("-")[0]
        if not token:
            return math.inf
        if not hmac.compare_digest(self._token(position).encode(), token.encode()):
            text = f"page_token is {shown(token)}, which this server did not give"
            raise InvalidConvolution(text, "page_token")
        return int(position)


class _Receiver:
    """Takes the messages of one PutLayer, and has the store count what is to come until it is closed."""

    def __init__(self, layers: LayerStore) -> None:
        self._layers = layers
        self._incoming: IncomingLayer | None = None

    async def take(self, messages: Messages) -> None:
        """All of them. Raises InvalidConvolution unless the first message, and no other, has a definition, and
        StalledError.
        """
        while (message := await messages.next(self._when())) is not None:
            metrics.RECEIVED_BYTES.inc(len(message))
            definition, header, data = _parts(message)
            incoming = self._begun(definition, header)
            for part in data:
                incoming.take(part)
                messages.alive()

    def _when(self) -> str:
        return f"when {self._incoming.come} had come" if self._incoming else "before the definition came"

    def put(self) -> HeldLayer:
        """Holds what came. Raises InvalidConvolution where that is not all."""
        if self._incoming is None:
            raise InvalidConvolution("the call ended without a message; the first has the definition", "definition")
        return self._layers.put(self._incoming.definition, *self._incoming.arrays(), is_private=True)

    def close(self) -> None:
        """Forgets what came, if the store does not hold it."""
        if self._incoming is not None:
            self._layers.release(self._incoming.bytes)

    def _begun(self, definition: bytes | None, header: pb.PutLayerRequest) -> IncomingLayer:
        if self._incoming is None:
            if definition is None:
                raise InvalidConvolution("the first message has no definition", "definition")
            self._incoming = IncomingLayer(definition, header.definition, self._layers.reserve)
        elif definition is not None:
            raise InvalidConvolution("a later message has a second definition; the first alone has one", "definition")
        return self._incoming


def _parts(request: bytes) -> tuple[bytes | None, pb.PutLayerRequest, Sequence[memoryview]]:
    """(definition as it was sent or None, all but data, data) of a message of PutLayer."""
    header, data = with_data(request)
    _, definitions = split(header, DEFINITION_FIELD)
    if len(definitions) > 1:
        raise InvalidConvolution(f"a message has {len(definitions)} definitions; one is enough", "definition")
    return bytes(definitions[0]) if definitions else None, known(pb.PutLayerRequest, header), data


def _page_size(asked: int) -> int:
    if not 0 <= asked <= MOST_OF_A_PAGE:
        raise InvalidConvolution(f"page_size is {asked}; it must be 1 to {MOST_OF_A_PAGE}", "page_size")
    return asked or DEFAULT_PAGE


def _page(layers: Sequence[HeldLayer]) -> int:
    """How many of them are a page: all, or fewer where their definitions are large."""
    size = 0
    for count, layer in enumerate(layers, 1):
        size += len(layer.definition)
        if size >= LARGEST_PAGE:
            return count
    return len(layers)


def _one(layer: HeldLayer) -> bytes:
    """A PutLayerResponse or a GetLayerResponse."""
    return join(b"", [_encoded(layer)], field=1, filler=None)


def _encoded(layer: HeldLayer) -> bytes:
    """A HeldLayer; its definition is the bytes that were sent, which protobuf might write in another way."""
    rest = pb.HeldLayer(digest=layer.digest, bytes=layer.bytes, idle_seconds=layer.idle_seconds)
    return join(rest.SerializeToString(), [layer.definition], field=pb.HeldLayer.DEFINITION_FIELD_NUMBER, filler=None)
