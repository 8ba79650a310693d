"""The SDK: `Client` calls a Convolver service, and feels like torch.nn.functional; `AsyncClient` does with `await`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convolver.client._answers import Answer, StackAnswer, StackGradients
    from convolver.client._client_async import AsyncClient
    from convolver.client._client_shared import Info
    from convolver.client._client_sync import Client
    from convolver.client._composition import HeldWeights
    from convolver.client._gradients import Gradients
    from convolver.client._held_layers import HeldLayer
    from convolver.client._layers_async import AsyncLayer, AsyncStack
    from convolver.client._layers_sync import Layer, Stack
    from convolver.client._stack_files import StackFile, load_stack
    from convolver.client._stack_layers import Conv, Pool, StackLayer
    from convolver.client._weights import load_weights
    from convolver.client.errors import (
        DeadlineExceeded,
        NotAuthorised,
        ServiceUnavailable,
        TransportError,
        WeightsError,
    )
    from convolver.core.parameters import Parameters
    from convolver.core.plan import Plan, Report
    from convolver.core.receptive import ReceptiveField
    from convolver.core.stack_plan import PoolingPlan, StackPlan

_HOMES = {
    "Answer": "convolver.client._answers",
    "AsyncClient": "convolver.client._client_async",
    "AsyncLayer": "convolver.client._layers_async",
    "AsyncStack": "convolver.client._layers_async",
    "Client": "convolver.client._client_sync",
    "Conv": "convolver.client._stack_layers",
    "DeadlineExceeded": "convolver.client.errors",
    "Gradients": "convolver.client._gradients",
    "HeldLayer": "convolver.client._held_layers",
    "HeldWeights": "convolver.client._composition",
    "Info": "convolver.client._client_shared",
    "Layer": "convolver.client._layers_sync",
    "NotAuthorised": "convolver.client.errors",
    "Parameters": "convolver.core.parameters",
    "Plan": "convolver.core.plan",
    "Pool": "convolver.client._stack_layers",
    "PoolingPlan": "convolver.core.stack_plan",
    "ReceptiveField": "convolver.core.receptive",
    "Report": "convolver.core.plan",
    "ServiceUnavailable": "convolver.client.errors",
    "Stack": "convolver.client._layers_sync",
    "StackAnswer": "convolver.client._answers",
    "StackFile": "convolver.client._stack_files",
    "StackGradients": "convolver.client._answers",
    "StackLayer": "convolver.client._stack_layers",
    "StackPlan": "convolver.core.stack_plan",
    "TransportError": "convolver.client.errors",
    "WeightsError": "convolver.client.errors",
    "load_stack": "convolver.client._stack_files",
    "load_weights": "convolver.client._weights",
}

__all__ = [
    "Answer",
    "AsyncClient",
    "AsyncLayer",
    "AsyncStack",
    "Client",
    "Conv",
    "DeadlineExceeded",
    "Gradients",
    "HeldLayer",
    "HeldWeights",
    "Info",
    "Layer",
    "NotAuthorised",
    "Parameters",
    "Plan",
    "Pool",
    "PoolingPlan",
    "ReceptiveField",
    "Report",
    "ServiceUnavailable",
    "Stack",
    "StackAnswer",
    "StackFile",
    "StackGradients",
    "StackLayer",
    "StackPlan",
    "TransportError",
    "WeightsError",
    "load_stack",
    "load_weights",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Loads a name's home when it is first asked for, so that `convolver --help` need not load gRPC and NumPy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
