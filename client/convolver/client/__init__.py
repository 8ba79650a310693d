"""The SDK: `Client` calls a Convolver service, and feels like torch.nn.functional; `AsyncClient` does with `await`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convolver.client._client_async import AsyncClient
    from convolver.client._client_shared import Answer, Info
    from convolver.client._client_sync import Client
    from convolver.client._gradients import Gradients
    from convolver.client.errors import DeadlineExceeded, NotAuthorised, ServiceUnavailable, TransportError
    from convolver.core.parameters import Parameters
    from convolver.core.plan import Plan, Report

_HOMES = {
    "Answer": "convolver.client._client_shared",
    "AsyncClient": "convolver.client._client_async",
    "Client": "convolver.client._client_sync",
    "DeadlineExceeded": "convolver.client.errors",
    "Gradients": "convolver.client._gradients",
    "Info": "convolver.client._client_shared",
    "NotAuthorised": "convolver.client.errors",
    "Parameters": "convolver.core.parameters",
    "Plan": "convolver.core.plan",
    "Report": "convolver.core.plan",
    "ServiceUnavailable": "convolver.client.errors",
    "TransportError": "convolver.client.errors",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "Client",
    "DeadlineExceeded",
    "Gradients",
    "Info",
    "NotAuthorised",
    "Parameters",
    "Plan",
    "Report",
    "ServiceUnavailable",
    "TransportError",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Loads a name's home when it is first asked for, so that `convolver --help` need not load gRPC and NumPy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
