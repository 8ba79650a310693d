"""The one table at the edge: our errors become statuses with details; any other is logged with a reference, which alone
travels.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

import grpc
from grpc_status import rpc_status

from convolver.core.errors import BackendFailure, ConvolverError, Overloaded
from convolver.core.status import to_status
from convolver.server import metrics
from convolver.server._metrics_interceptor import write_all
from convolver.server.frames import drop_tracebacks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = grpc.RpcMethodHandler[Any, Any]

logger = logging.getLogger(__name__)

AFTER_NO_MEMORY = 1.0
"""Seconds after which a request for which there was no memory may come again."""


class ErrorsInterceptor(grpc.aio.ServerInterceptor):
    """For all four kinds of calls; streams that carry their errors in messages use `as_error` themselves. Handlers are
    coroutines or async generators.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The call's handler, with the errors it raises answered."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        sides = (
            "stream" if streams else "unary" for streams in (handler.request_streaming, handler.response_streaming)
        )
        kind = "_".join(sides)  # as grpc names the handler's behaviour, and the function that makes such a handler
        behaviour, make = getattr(handler, kind), getattr(grpc, f"{kind}_rpc_method_handler")

        async def answered(request: Any, context: Any) -> Any:  # noqa: ANN401  # messages of any service, and MetricsInterceptor's context
            try:
                answer = behaviour(request, context)
                return await (write_all(answer, context) if handler.response_streaming else answer)
            except grpc.aio.AbortError:
                raise
            except TimeoutError as late:  # it waited in vain for a thread; no error of ours has this status
                drop_tracebacks(late)
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(late))
            except Exception as error:  # noqa: BLE001  # this is the edge: nothing unknown may travel, and nothing is lost
                await context.abort_with_status(rpc_status.to_status(to_status(as_error(error))))

        made: Handler = make(answered, handler.request_deserializer, handler.response_serializer)
        return made


def as_error(error: Exception) -> ConvolverError:
    """What a caller is told: the error itself, Overloaded where there was no memory, or a BackendFailure whose
    reference is in the log with the cause. The error's traceback is gone then.
    """
    if isinstance(error, MemoryError):
        logger.error("no memory: %s", error)
        drop_tracebacks(error)
        error = Overloaded("this machine has no memory for it now", AFTER_NO_MEMORY)
    if not isinstance(error, ConvolverError):
        reference = secrets.token_hex(8)
        logger.error("failure %s", reference, exc_info=error)
        drop_tracebacks(error)
        return BackendFailure(f"the server failed; its log has the cause under {reference}", reference)
    drop_tracebacks(error)
    if error.reason in metrics.REASONS:
        metrics.REFUSED.labels(error.reason).inc()
    return error
