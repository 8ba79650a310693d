"""The channels of a client to one server or several, and which of them are connected."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import grpc

if TYPE_CHECKING:
    from collections.abc import Sequence

GRACE = 1.0
"""Seconds from the first call on for which a server's turn waits until it is connected, so that each gets its share
from the start."""

PATIENCE, LONGEST_PATIENCE = 0.25, 60.0
"""The part of a call's timeout for which it waits until some server is connected; the timeout of those without."""

PAUSE = 0.005
"""Seconds between two looks at what is not connected."""

LOOK = 0.02
"""The same, where a call waits until a server is back."""

Channel = TypeVar("Channel", grpc.Channel, grpc.aio.Channel)

State = grpc.ChannelConnectivity
_STATES: dict[int, State] = {state.value[0]: state for state in State}
"""By gRPC's numbers."""


class Channels(Generic[Channel]):
    """To all servers of an address together, where gRPC's round_robin lets them take turns and tries another for one
    that is gone; and to each alone, since the server that does not know a layer is the one to be sent it.
    """

    def __init__(self, together: Channel, each: Sequence[Channel]) -> None:
        self.all: list[Channel] = [together]
        self.all += each
        self.together: Channel = together
        self.each: list[Channel] = self.all[1:] or self.all
        # Not the first: many clients would all begin with the same server.
        self._turns = itertools.count(random.randrange(len(self.each)))  # noqa: S311 - no secret
        self._grace: float | None = None
        self._unary = cache(lambda channel, path: channel.unary_unary(path))

    def unary(self, path: str, channel: Channel | None = None) -> Any:  # noqa: ANN401 - of the channel's colour
        """What calls the method of that path, made once: by the channel, or by all together."""
        return self._unary(channel or self.together, path)

    def beside(self, channel: Channel) -> Channel:
        """That to the next server, for a second try beside the first."""
        return self.each[(self.each.index(channel) + 1) % len(self.each)] if channel in self.each else self.each[0]

    def _begin(self, seconds: float | None) -> tuple[int, float, float]:
        """The place whose turn it is, and until when to wait for it, and for any."""
        now = time.monotonic()
        self._grace = self._grace or now + GRACE
        most = now + PATIENCE * (LONGEST_PATIENCE if seconds is None else seconds)
        return next(self._turns) % len(self.each), min(self._grace, most), most

    def _ordered(self, turn: int, states: Sequence[State]) -> list[Channel]:
        """From the one whose turn it is on, but first those that are connected."""
        places = [place % len(self.each) for place in range(turn, turn + len(self.each))]
        return [self.each[place] for place in sorted(places, key=lambda place: states[place] is not State.READY)]


class BlockingChannels(Channels[grpc.Channel]):
    """Those of a blocking client."""

    def is_ready(self, channels: Sequence[grpc.Channel]) -> bool:
        """Whether any of these is connected; those that are not begin to connect."""
        return State.READY in [_state(channel) for channel in channels]

    def in_turn(self, seconds: float | None) -> list[grpc.Channel]:
        """Those to each server alone, in the order in which a call of so many seconds tries them."""
        if len(self.each) == 1:
            return self.each
        turn, own, any_one = self._begin(seconds)
        while _is_to_wait(states := list(map(_state, self.each)), turn, own, any_one):
            time.sleep(PAUSE)
        return self._ordered(turn, states)


class AsynchronousChannels(Channels[grpc.aio.Channel]):
    """Those of an asynchronous client."""

    def is_ready(self, channels: Sequence[grpc.aio.Channel]) -> bool:
        """Whether any of these is connected; those that are not begin to connect."""
        return State.READY in [channel.get_state(try_to_connect=True) for channel in channels]

    async def in_turn(self, seconds: float | None) -> list[grpc.aio.Channel]:
        """Those to each server alone, in the order in which a call of so many seconds tries them."""
        if len(self.each) == 1:
            return self.each
        turn, own, any_one = self._begin(seconds)
        while _is_to_wait(states := self._states(), turn, own, any_one):  # noqa: ASYNC110 - gRPC has no event for it
            await asyncio.sleep(PAUSE)
        return self._ordered(turn, states)

    def _states(self) -> list[State]:
        return [channel.get_state(try_to_connect=True) for channel in self.each]


def _state(channel: grpc.Channel) -> State:
    """Its state; one without a connection begins to make it. The public way, `subscribe`, polls in threads, which
    break with an exception of their own where the channel is closed meanwhile.
    """
    with suppress(ValueError):  # it is closed
        return _STATES[cast("Any", channel)._channel.check_connectivity_state(True)]  # noqa: SLF001, FBT003 - see above
    return State.SHUTDOWN


def _is_to_wait(states: Sequence[State], turn: int, own: float, any_one: float) -> bool:
    """Whether a connection is worth to be waited for: to the one whose turn it is, or to any where there is none."""
    now, is_pending = time.monotonic(), [state in (State.IDLE, State.CONNECTING) for state in states]
    return (now < own and is_pending[turn]) or (now < any_one and State.READY not in states and any(is_pending))
