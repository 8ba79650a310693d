"""The one table at the edge: our errors become statuses with details; any other is logged with a reference, which alone
travels.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING, Any

import grpc
from grpc_status import rpc_status

from convolver.core.errors import BackendFailure, ConvolverError
from convolver.core.status import to_status
from convolver.server import metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Handler = grpc.RpcMethodHandler[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]

logger = logging.getLogger(__name__)


class ErrorsInterceptor(grpc.aio.ServerInterceptor):
    """For unary calls; streams that carry their errors in messages use `as_error` themselves."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The call's handler, with the errors it raises answered."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        behaviour: Any = handler.unary_unary  # the stubs know synchronous handlers alone

        async def answered(request: Any, context: Context) -> Any:  # noqa: ANN401  # messages of any service
            try:
                return await behaviour(request, context)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # noqa: BLE001  # this is the edge: nothing unknown may travel, and nothing is lost
                await context.abort_with_status(rpc_status.to_status(to_status(as_error(error))))

        return grpc.unary_unary_rpc_method_handler(answered, handler.request_deserializer, handler.response_serializer)


def as_error(error: Exception) -> ConvolverError:
    """What a caller is told: the error itself, or a BackendFailure whose reference is in the log with the cause."""
    if not isinstance(error, ConvolverError):
        reference = secrets.token_hex(8)
        logger.error("failure %s", reference, exc_info=error)
        return BackendFailure(f"the server failed; its log has the cause under {reference}", reference)
    if error.reason in metrics.REASONS:
        metrics.REFUSED.labels(error.reason).inc()
    return error
