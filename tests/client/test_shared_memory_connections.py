"""Which connections the leases of blocking clients take: their own, so that calls have theirs to themselves."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.shared_memory_calls import WEIGHT, numbers, travelled
from tests.server.hold_calls import shared, until_nothing_is_shared

from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

CROWD, SECONDS = 5, 20.0


def sharing(serve: Callable[..., RunningServer], streams: int) -> RunningServer:
    return serve("--backend=reference", "--shared-memory", f"--max-concurrent-streams={streams}")


@pytest.fixture
def expected(client: Client) -> np.ndarray[Any, Any]:
    output: np.ndarray[Any, Any] = client.convolve(numbers(), WEIGHT)
    return output


def test_many_clients_of_a_process_leave_its_connection_to_calls(
    serve: Callable[..., RunningServer], expected: np.ndarray[Any, Any]
) -> None:
    running = sharing(serve, 2)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(running.address, timeout=SECONDS)) for _ in range(CROWD)]
        for client in [*clients, clients[0]]:
            np.testing.assert_array_equal(client.convolve(numbers(), WEIGHT), expected)
        assert shared(running)[0] == 2 * CROWD
    until_nothing_is_shared(running)


def test_a_connection_of_one_call_is_enough(
    serve: Callable[..., RunningServer], expected: np.ndarray[Any, Any]
) -> None:
    running = sharing(serve, 1)

    def call() -> None:
        with Client(running.address, timeout=SECONDS) as client:
            np.testing.assert_array_equal(client.convolve(numbers(), WEIGHT), expected)

    assert travelled(running, call) < 5000
    until_nothing_is_shared(running)
