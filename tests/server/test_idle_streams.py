"""What a stream keeps while its caller says nothing: no message."""

from __future__ import annotations

import asyncio
import tracemalloc

import grpc
import numpy as np
from tests.contract import KERNEL, SERVICE, convolution
from tests.server.stream_calls import item
from tests.wait import until_in_loop

from convolver.server.server import Server
from convolver.server.settings import Settings

SIDE = 1000
MESSAGE_BYTES = SIDE * SIDE * 4


def test_an_answered_request_is_not_kept_until_the_next_one_comes() -> None:
    async def run() -> None:
        server = Server(Settings(listen=("127.0.0.1:0",), http_listen=None, backend="reference", threads=1))
        await server.start()
        try:
            async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
                await ask(channel)
        finally:
            await server.stop()

    async def ask(channel: grpc.aio.Channel) -> None:
        image = np.zeros((1, 1, SIDE, SIDE), np.float32)
        message = item(1, convolution(image.shape), KERNEL, image)
        tracemalloc.start()
        try:
            opened: grpc.aio.StreamStreamMultiCallable[bytes, bytes]
            opened = channel.stream_stream(f"/{SERVICE}/ConvolveStream")
            call = opened()
            await call.write(message)
            assert await call.read() is not grpc.aio.EOF
            await until_in_loop(lambda: tracemalloc.get_traced_memory()[0] < MESSAGE_BYTES / 2, "the message to go")
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
        finally:
            tracemalloc.stop()

    asyncio.run(run())
