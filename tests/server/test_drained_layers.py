"""A server that drains while a layer is on its way, and what it has counted of it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from tests.server.layer_calls import SERVICE, WEIGHT, first
from tests.wait import until_in_loop

from convolver.server import metrics
from convolver.server.calls import Calls
from convolver.server.layer_service import LayerService
from convolver.server.layers import LayerStore


def received() -> float:
    return metrics.REGISTRY.get_sample_value("convolver_received_bytes_total") or 0


def test_a_layer_that_is_on_its_way_does_not_hold_up_a_drain_and_is_counted_no_more() -> None:
    store = LayerStore(1000)

    async def whole() -> None:
        calls, server = Calls(), grpc.aio.server()
        server.add_generic_rpc_handlers((LayerService(store, calls, 60).handler(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            rpc: Any = channel.stream_unary(f"/{SERVICE}/PutLayer")(timeout=60)
            before = received()
            await rpc.write(first(WEIGHT).SerializeToString())
            await until_in_loop(lambda: received() > before, "the first message to be taken")
            calls.drain()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await rpc
            assert ended.value.code() == grpc.StatusCode.UNAVAILABLE
            await asyncio.wait_for(calls.ended(), 30)
        await server.stop(None)

    asyncio.run(whole())
    assert store.count == 0
    store.reserve(1000)  # all of the budget is to be had again
