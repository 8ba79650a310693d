"""Reads and writes of a call: who waits for one may be cancelled, it itself never."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import Counter

from convolver.server._metrics_interceptor import _Context, _Series, _whole


class Message:
    """What an operation holds."""


class CallOverError(Exception):
    """As gRPC raises one when the caller has left."""


class Operation:
    """One that ends when it is let go of, perhaps with an error."""

    def __init__(self, error: type[Exception] | None = None) -> None:
        self.let_go, self.ended, self._error = asyncio.Event(), False, error

    async def run(self, message: Message) -> Message:
        await self.let_go.wait()
        self.ended = True
        if self._error:
            raise self._error()
        return message


def test_it_gives_what_the_operation_gives() -> None:
    async def run() -> None:
        operation, message = Operation(), Message()
        operation.let_go.set()
        assert await _whole(operation.run(message)) is message

    asyncio.run(run())


@pytest.mark.parametrize("error", [None, CallOverError])
def test_it_goes_on_without_who_waited_and_its_error_is_nobodys(error: type[Exception] | None) -> None:
    said: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        operation = Operation(error)
        waiting = asyncio.create_task(_whole(operation.run(Message())))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not operation.ended
        operation.let_go.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert operation.ended

    asyncio.run(run())
    gc.collect()  # errors that nobody has asked for are told of then
    assert not said


def test_what_a_failed_operation_held_is_let_go_of_without_a_collection() -> None:
    async def run() -> None:
        operation, message = Operation(CallOverError), Message()
        held = weakref.ref(message)
        operation.let_go.set()
        begun = operation.run(message)
        del message, operation
        with suppress(CallOverError):
            await _whole(begun)
        del begun
        await asyncio.sleep(0)  # for the task's own end
        assert held() is None

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


@pytest.mark.parametrize("direction", ["received", "sent"])
def test_a_message_counts_without_who_waited_for_it(direction: str) -> None:
    async def run() -> None:
        operation, series = Operation(), _Series("unary", "test.Counts", direction)
        context: Any = SimpleNamespace(write=operation.run, read=lambda: operation.run(Message()))
        both = _Context(context, series)
        waiting = asyncio.create_task(both.write(Message()) if direction == "sent" else both.read())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert count_of(getattr(series, direction)) == 0
        operation.let_go.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert count_of(getattr(series, direction)) == 1

    asyncio.run(run())


def count_of(counter: Counter) -> float:
    """Of one method."""
    (metric,) = counter.collect()
    return next(sample.value for sample in metric.samples if sample.name.endswith("_total"))
