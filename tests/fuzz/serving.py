"""A server without sockets: its own wiring and its own handlers, called with bytes and a context as gRPC calls them."""

from __future__ import annotations

import asyncio
import logging
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from google.rpc import status_pb2

from convolver.core.errors import BackendFailure, ConvolverError
from convolver.core.status import from_status, to_status
from convolver.server import chunks
from convolver.server.regions import Candidate, Registry
from convolver.server.server import Server
from convolver.server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

REGION, REGION_BYTES = "0123456789abcdef" * 2, 4096
"""A region that is always held, under this id."""

LARGEST_STATUS = 3000
"""Bytes, as convolver.core.status promises."""


class Aborted(Exception):
    """The handler has ended the call with a status of its own: UNAVAILABLE, DEADLINE_EXCEEDED or PERMISSION_DENIED."""


class Context:
    """One call's; `answer` is given each message that the handler writes."""

    def __init__(self, answer: Callable[[bytes], None]) -> None:
        self._answer = answer
        self._callbacks: list[Callable[[Any], None]] = []

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def peer(self) -> str:
        return "unix:"

    def time_remaining(self) -> float | None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def send_initial_metadata(self, _: object) -> None:
        await asyncio.sleep(0)

    async def write(self, message: bytes) -> None:
        await asyncio.sleep(0)
        self._answer(message)

    async def abort(self, code: object, details: str = "") -> None:
        raise Aborted(code, details)

    def end(self) -> None:
        for callback in self._callbacks:
            callback(self)


class _Collected:
    """Stands for grpc.aio.Server: keeps what it is given."""

    def __init__(self) -> None:
        self.handlers: list[Any] = []

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        self.handlers += handlers

    def add_registered_method_handlers(self, *_: object) -> None:
        """Those of health and reflection, which are not ours."""


class _Unexpected(logging.Handler):
    """Keeps what the edge logs of errors that nobody foresaw, whose callers are told a reference alone."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    def check(self) -> None:
        if self.texts:
            texts, self.texts = self.texts, []
            raise AssertionError("\n".join(texts))


class Serving:
    """A server of small limits, which computes whatever it accepts. It holds a region of shared memory."""

    def __init__(self) -> None:
        chunks.LEAVING_SECONDS = 0.0  # a pause for callers who leave; here none does
        self._unexpected = _Unexpected()
        logging.getLogger().addHandler(self._unexpected)
        collected, registry = _Collected(), Registry(2**20)
        with (
            patch("grpc.aio.server", lambda **_: collected),
            patch("convolver.server.server.Registry", lambda _: registry),
        ):
            self._server = Server(_settings())
        self._handlers = collected.handlers
        self._loop = asyncio.new_event_loop()
        self._region = _held(registry)

    def call(self, method: str, *messages: bytes, answer: Callable[[bytes], None] | None = None) -> list[bytes] | None:
        """The messages of the answer, None where the call is refused, as it may be. `answer` is given each of a stream
        as it is written. Raises what a server may not answer.
        """
        answers, is_refused = list[bytes](), False
        context = Context(answer or answers.append)
        try:
            self._loop.run_until_complete(self._called(method, messages, context, answers))
        except Aborted:
            is_refused = True
        except ConvolverError as error:
            check_error(error)
            is_refused = True
        finally:
            context.end()
        self._loop.run_until_complete(self._idle())
        self._unexpected.check()
        return None if is_refused else answers

    async def _called(self, method: str, messages: Sequence[bytes], context: Context, answers: list[bytes]) -> None:
        details = SimpleNamespace(method=f"/convolver.v1.{method}", invocation_metadata=())
        handler = next(found for each in self._handlers if (found := each.service(details)))
        request: Any = _stream(messages) if handler.request_streaming else messages[0]
        if handler.response_streaming:
            await (handler.stream_stream or handler.unary_stream)(request, context)
        else:
            answers.append(await (handler.stream_unary or handler.unary_unary)(request, context))

    async def _idle(self) -> None:
        """Returns once nothing runs and nothing is held; never, where something is forgotten."""
        while self._server.busy:  # noqa: ASYNC110  # for whatever thread, and without a pause
            await asyncio.sleep(0)


def check_error(error: ConvolverError) -> None:
    """Raises AssertionError unless it is the caller's fault and travels as what it is."""
    status = to_status(error)
    assert not isinstance(error, BackendFailure), error
    assert status.ByteSize() <= LARGEST_STATUS, status
    assert type(from_status(status)) is type(error), status


def check_status(sent: bytes) -> None:
    """The same for a status of an answer in a stream; one without details is gRPC's."""
    status = status_pb2.Status.FromString(sent)
    error = from_status(status)
    assert (error is None) == (not status.details), status
    if error is not None:
        check_error(error)


async def _stream(messages: Sequence[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


def _settings() -> Settings:
    return Settings(
        backend="reference",
        threads=1,
        http_listen=None,
        max_message=2**20,
        max_output_elements=10**5,
        max_work=10**5,
        memory_budget=2**24,
        layer_budget=2**18,
        shared_memory=True,
        idle_timeout=30.0,
    )


def _held(registry: Registry) -> object:
    """A region under the known id."""
    descriptor = os.memfd_create("fuzz")
    os.ftruncate(descriptor, REGION_BYTES)
    candidate = Candidate(descriptor, REGION_BYTES)
    os.pwrite(descriptor, candidate.nonce, 0)
    with patch("secrets.token_hex", lambda _: REGION):
        return registry.hold(candidate)
