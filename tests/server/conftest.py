"""A plain gRPC channel to the shared server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import RunningServer


@pytest.fixture(scope="session")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    """A channel without options, as other languages' clients make one."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel
