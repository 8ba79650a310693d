"""How a stream of the asynchronous client has ended, where gRPC does not know it yet."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import grpc

from convolver.client._client_shared import OWN_TEXT

if TYPE_CHECKING:
    Call = grpc.aio.StreamStreamCall[bytes, bytes]

PATIENCE, PAUSE = 0.2, 0.002
"""Seconds that it may take to know, and between two looks."""


async def settled(call: Call, failure: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
    """The failure of that call, by what the server said where it said anything."""
    end = time.monotonic() + PATIENCE
    while failure.details() == OWN_TEXT and time.monotonic() < end:
        await asyncio.sleep(PAUSE)
        try:
            await call.read()
        except grpc.aio.AioRpcError as later:
            failure = later
    return failure
