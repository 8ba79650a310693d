"""The same call in both colours of the client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.client.async_calls import asynchronously

from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    Calls = Callable[[Any], Any]
    Called = Callable[[str, Calls], Any]


def by_sync(address: str, calls: Calls) -> Any:  # noqa: ANN401 - whatever the calls give
    """What the calls give with a blocking client."""
    with Client(address) as client:
        return calls(client)


def by_async(address: str, calls: Calls) -> Any:  # noqa: ANN401 - whatever the calls give
    """What the calls give once it is awaited."""
    return asynchronously(address, calls)


colours = pytest.mark.parametrize("called", [by_sync, by_async])
