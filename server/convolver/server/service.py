"""convolver.v1.ConvolutionService over bytes: decode, call the engine, encode. gRPC gets no serialisers, so that what
is wrong with a message is answered by the one table of errors.
"""

from __future__ import annotations

import asyncio
import platform
import time
from functools import cache, lru_cache
from importlib import metadata
from typing import TYPE_CHECKING

import grpc

from convolver.core import plan_codec
from convolver.core.wire import join, split
from convolver.server import metrics
from convolver.server.callers import OfCall
from convolver.server.chunked import ConvolveChunked
from convolver.server.messages import known, taken_out
from convolver.server.stream import ConvolveStream
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from convolver.server.calls import Calls
    from convolver.server.engine import Engine
    from convolver.server.requests import Requests
    from convolver.server.settings import Settings

DESCRIPTOR = pb.DESCRIPTOR.services_by_name["ConvolutionService"]

_CONVOLUTION = 1
"""The field's number in ConvolveRequest and PlanRequest."""

MOST_FILLER = 64
"""Bytes beside convolution and data of a request that are remembered as harmless: three tensors' filler."""

_Context = grpc.aio.ServicerContext[bytes, bytes]


class ConvolutionService:
    """The rpcs of this version. Those that the table lacks answer UNIMPLEMENTED."""

    def __init__(self, engine: Engine, requests: Requests, calls: Calls, settings: Settings) -> None:
        self._engine, self._requests, self._calls, self._settings = engine, requests, calls, settings

    def handler(self) -> grpc.GenericRpcHandler:
        """What a server is given."""
        table: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "Convolve": grpc.unary_unary_rpc_method_handler(self.convolve),
            "ConvolveChunked": grpc.stream_stream_rpc_method_handler(self.convolve_chunked),
            "ConvolveStream": grpc.stream_stream_rpc_method_handler(self.convolve_stream),
            "Plan": grpc.unary_unary_rpc_method_handler(self.plan),
            "GetInfo": grpc.unary_unary_rpc_method_handler(self.get_info),
        }
        return grpc.method_handlers_generic_handler(DESCRIPTOR.full_name, table)

    async def convolve(self, request: bytes, context: _Context) -> bytes:
        """One convolution."""
        self._calls.follow(context)
        received = time.perf_counter()
        metrics.RECEIVED_BYTES.inc(len(request))
        header, entries = split(request)
        rest, convolution = taken_out(header, _CONVOLUTION)
        _check(rest)
        answer = await self._requests.answer(convolution, entries, received, _convolve_response, OfCall(context))
        metrics.SENT_BYTES.inc(len(answer))
        return answer

    async def convolve_stream(self, messages: AsyncIterator[bytes], context: _Context) -> None:
        """Many convolutions."""
        self._calls.follow(context)
        await ConvolveStream(self._requests, self._calls, context, self._settings.stream_window).run(messages)

    async def convolve_chunked(self, messages: AsyncIterator[bytes], context: _Context) -> None:
        """One convolution of any size."""
        self._calls.follow(context)
        await ConvolveChunked(self._requests, context, self._settings.idle_timeout).run(messages)

    async def plan(self, request: bytes, _context: _Context) -> bytes:
        """What `convolve` would do."""
        rest, convolution = taken_out(request, _CONVOLUTION)
        known(pb.PlanRequest, rest)
        return await asyncio.to_thread(self._planned, convolution)  # for a thousand layers it takes a second

    def _planned(self, convolution: bytes) -> bytes:
        plan = plan_codec.plan_to_proto(self._engine.plan(convolution))
        return pb.PlanResponse(plan=plan).SerializeToString()

    async def get_info(self, request: bytes, _context: _Context) -> bytes:
        """What this server is and may."""
        known(pb.GetInfoRequest, request)
        settings = self._settings
        limits = pb.Limits(
            max_message_bytes=settings.max_message,
            max_output_elements=settings.max_output_elements,
            max_request_bytes=settings.max_request_bytes,
            max_work=settings.max_work,
            memory_budget_bytes=settings.memory_budget,
        )
        backends = map(plan_codec.capability_to_proto, self._engine.capabilities)
        store = self._engine.store
        answer = pb.GetInfoResponse(
            versions=versions(),
            backends=backends,
            limits=limits,
            layers=store.count,
            layer_bytes=store.bytes,
            shared_memory=settings.shared_memory,
        )
        return answer.SerializeToString()


def _check(rest: bytes) -> None:
    """Refuses what stands beside the convolution and the data, but for filler."""
    (_check_short if len(rest) <= MOST_FILLER else _check_anew)(rest)


def _check_anew(rest: bytes) -> None:
    known(pb.ConvolveRequest, rest)


_check_short = lru_cache(256)(_check_anew)  # requests of our own have the same again and again


def _convolve_response(result: bytes) -> bytes:
    return join(b"", [result], field=pb.ConvolveResponse.RESULT_FIELD_NUMBER, filler=None)


@cache
def versions() -> dict[str, str]:
    """What is installed of what matters."""
    names = ("convolver", "numpy", "torch", "grpcio", "protobuf")
    found = {name: distribution.version for name in names for distribution in metadata.distributions(name=name)}
    return {**found, "python": platform.python_version()}
