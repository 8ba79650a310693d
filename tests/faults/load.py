"""Load on several servers by the SDK: threads of the blocking client and tasks of the asynchronous one."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import numpy as np
from tests.faults.calls import CHUNKED, PATIENCE, STREAM, UNARY, WEIGHT, numbers

from convolver.client import AsyncClient, Client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.calls import Call

JOIN_SECONDS = 120.0


class Load:
    """Calls that go on until the context ends: `made` counts them by kind, and `failures` says what went wrong."""

    def __init__(self, address: str) -> None:
        self.made = Counter[str]()
        self.failures: list[str] = []
        self._address, self._ended = address, threading.Event()
        self._threads = [
            *(threading.Thread(target=self._call, args=(call,)) for call in (UNARY, UNARY, CHUNKED, STREAM)),
            threading.Thread(target=lambda: asyncio.run(self._call_in_loop())),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a call has never ended"

    @property
    def is_under_way(self) -> bool:
        """Whether every kind of calls has had answers."""
        return len(self.made) == 5

    def _call(self, call: Call) -> None:
        with Client(self._address, timeout=PATIENCE) as client:
            while not self._ended.is_set():
                with self._noted(call.name):
                    call.check(client)

    async def _call_in_loop(self) -> None:
        async with AsyncClient(self._address, timeout=PATIENCE) as client:
            while not self._ended.is_set():
                for call in (UNARY, CHUNKED):
                    with self._noted(f"{call.name}, asynchronous"):
                        output = await client.convolve(numbers(*call.shape), WEIGHT)
                        np.testing.assert_array_equal(output, call.expected)

    @contextmanager
    def _noted(self, kind: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - it is counted
            self.failures.append(f"{kind}: {type(error).__name__}: {error}"[:300])
        else:
            self.made[kind] += 1
