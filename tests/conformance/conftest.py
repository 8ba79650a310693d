"""The service, once for each back end."""

from __future__ import annotations

import pytest
from tests.conformance.served import Served

from convolver.client import Client


@pytest.fixture
def served(client: Client, backend: str) -> Served:
    """A real server on a real socket, on each back end in turn."""
    return Served.by(client, backend)
