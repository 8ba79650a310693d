"""What counts as waited for, and what does not."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import pytest
from tests.contract import convolution
from tests.server.chunked_calls import OpenCall, first
from tests.server.layer_calls import metric
from tests.server.test_scheduler import THREADS, Work, with_scheduler
from tests.wait import until

from convolver.client import Client
from convolver.core.errors import Overloaded
from convolver.server.demand import Demand
from convolver.server.worker_process import WorkerProcess
from convolver.v1 import convolution_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer


@with_scheduler
async def test_a_deadline_within_what_runs_is_refused_at_once(scheduler: Any) -> None:  # noqa: ANN401  # a Scheduler
    works, now = [Work() for _ in range(THREADS)], asyncio.get_running_loop().time()
    running = [asyncio.create_task(scheduler.run(Demand(1, 5.0, f"{i}"), work)) for i, work in enumerate(works)]
    for work in works:
        await work.has_started()
    with pytest.raises(Overloaded, match="its deadline is in"):
        await scheduler.run(Demand(1, 0.01, "another", deadline=now + 3, is_learnt=True), int)
    assert not scheduler.has_room(10**6)
    for work in works:
        work.let_go.set()
    await asyncio.gather(*running)


def test_an_upload_that_has_only_begun_is_before_nobody(serve: Callable[..., RunningServer]) -> None:
    server = serve("--backend=reference", "--threads=1", "--queue-seconds=0.5", "--idle-timeout=60")
    header = convolution((1, 1, 2000, 2000), (16, 1, 99, 99))
    header.execution.algorithm = convolution_pb2.ALGORITHM_DIRECT
    x, w = np.ones((1, 8, 64, 64), np.float32), np.ones((8, 8, 9, 9), np.float32)
    with grpc.insecure_channel(server.address) as channel, OpenCall(channel, first(header)):
        until(lambda: metric(server, "convolver_memory_bytes") > 0, "its admission")
        assert metric(server, "convolver_backlog_seconds") == 0
        with Client(server.address) as client:
            assert client.convolve(x, w).shape == (1, 8, 56, 56)


def test_a_worker_that_dies_in_the_midst_of_a_line_has_ended() -> None:
    async def whole() -> int:
        output = asyncio.StreamReader()
        output.feed_data(b'["ready", null]\nprinted\n["metrics", [["a_to')
        output.feed_eof()

        async def wait() -> int:
            return -9

        process = cast("asyncio.subprocess.Process", SimpleNamespace(stdout=output, wait=wait))
        worker = WorkerProcess(process, lambda: None)
        code = await worker.ended()
        assert not worker.ready
        return code

    assert asyncio.run(whole()) == -9
