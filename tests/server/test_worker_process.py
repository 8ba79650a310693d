"""A worker as its parent sees it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from tests.server.worker_processes import children_of

from convolver.server.settings import Settings
from convolver.server.worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def waiting_in_the_loop() -> Iterator[None]:
    """For processes, as Python does it from 3.12 on: one that has ended is there until the event loop looks."""
    if sys.version_info >= (3, 12):
        yield
        return
    before = asyncio.get_child_watcher()
    asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    yield
    asyncio.set_child_watcher(before)


@pytest.mark.usefixtures("waiting_in_the_loop")
def test_to_kill_a_worker_that_has_just_ended_does_not_lose_how() -> None:
    async def ending() -> int:
        settings = Settings(listen=("127.0.0.1:0",), http_listen=None, backend="reference")
        others = children_of(os.getpid())
        worker = await WorkerProcess.started(settings, lambda: None)
        [pid] = children_of(os.getpid()) - others
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - so that the event loop does not see it yet
        worker.kill()
        return await worker.ended()

    assert asyncio.run(ending()) == -signal.SIGKILL
