"""Networks that delay, cut, corrupt and stall, between the SDK and a server."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pytest
from tests.faults.calls import CHUNKED, PATIENCE, STREAM, UNARY, Call
from tests.faults.proxy import FOR_EVER, Kind, Mishap, Way
from tests.faults.world import IMPATIENT, PLAIN, Fault, World

from convolver.client import Client
from convolver.core.errors import ConvolverError

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = 0.4
"""Seconds that a call may take which never gets its answer."""

HANDSHAKE = 200
"""Bytes, about, before the first call."""


class Trouble(NamedTuple):
    """A mishap, of which `at` is drawn, how long a call through it may take, and what may come of that: a right answer
    or not, any, or an error.
    """

    name: str
    mishap: Mishap
    outcome: Callable[[Client, Call, float], None]
    timeout: float = PATIENCE

    @property
    def flags(self) -> tuple[str, ...]:
        """What is to be answered, however late it comes, needs a server that waits for it."""
        return PLAIN if self.outcome is answered else IMPATIENT


def answered(client: Client, call: Call, timeout: float) -> None:
    np.testing.assert_array_equal(call.make(client, timeout), call.expected)


def right_or_error(client: Client, call: Call, timeout: float) -> None:
    with suppress(ConvolverError):
        answered(client, call, timeout)


def any_or_error(client: Client, call: Call, timeout: float) -> None:
    """Without TLS nobody notices that a number of a tensor is another."""
    with suppress(ConvolverError):
        assert call.make(client, timeout).shape == call.expected.shape


def error(client: Client, call: Call, timeout: float) -> None:
    with pytest.raises(ConvolverError):
        call.make(client, timeout)


TROUBLES = (
    Trouble("delay", Mishap(Kind.DELAY, seconds=0.01), answered),
    Trouble("delay of the answer", Mishap(Kind.DELAY, Way.DOWN, seconds=0.01), answered),
    Trouble("short stall", Mishap(Kind.STALL, seconds=0.2), answered),
    Trouble("short stall of the answer", Mishap(Kind.STALL, Way.DOWN, seconds=0.2), answered),
    Trouble("stall", Mishap(Kind.STALL, seconds=FOR_EVER), error, SHORT),
    Trouble("stall of the answer", Mishap(Kind.STALL, Way.DOWN, seconds=FOR_EVER), error, SHORT),
    Trouble("half-open", Mishap(Kind.SWALLOW), error, SHORT),
    Trouble("half-open for the answer", Mishap(Kind.SWALLOW, Way.DOWN), error, SHORT),
    Trouble("reset", Mishap(Kind.RESET), right_or_error),
    Trouble("reset in the answer", Mishap(Kind.RESET, Way.DOWN), right_or_error),
    Trouble("end", Mishap(Kind.END), right_or_error),
    Trouble("end in the answer", Mishap(Kind.END, Way.DOWN), right_or_error),
    Trouble("corruption", Mishap(Kind.CORRUPT), any_or_error, SHORT),
    Trouble("corruption of the answer", Mishap(Kind.CORRUPT, Way.DOWN), any_or_error, SHORT),
)


def undergo(world: World, call: Call, trouble: Trouble) -> None:
    """Makes the call through a connection to which it happens, somewhere between its handshake and its last byte."""
    most = call.bytes * 3 // 4  # rather less than the call has
    early = world.random.random() < 0.3
    world.proxy.mishap = trouble.mishap._replace(at=world.random.randrange(HANDSHAKE, 2000 if early else most))
    try:
        with Client(world.proxy.address) as client:
            trouble.outcome(client, call, trouble.timeout)
    finally:
        world.proxy.mishap = None
        world.proxy.reset_all()


FAULTS = [
    Fault(f"network: {trouble.name}, {call.name}", partial(undergo, call=call, trouble=trouble), trouble.flags)
    for trouble in TROUBLES
    for call in (UNARY, STREAM, CHUNKED)
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_server_survives(fault: Fault, endures: Callable[[Fault], None]) -> None:
    endures(fault)
