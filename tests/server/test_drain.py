"""The end of a server, told in the order in which it happens."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from grpc.aio._server import Server as AioServer
from grpc_health.v1 import health_pb2
from tests.contract import ANSWER, IMAGE, KERNEL, SERVICE
from tests.server.test_lifecycle import FOR_EVER, NOT_SERVING, REFERENCE, computing, health, http_code
from tests.wait import until

from convolver.client import Client, ServiceUnavailable
from convolver.server.server import Server
from convolver.server.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

    Serve = Callable[..., RunningServer]

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)


def catches(pid: int, number: int) -> bool:
    """Whether the process handles this signal itself: proc(5), SigCgt."""
    (caught,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_readiness_says_no_then_calls_go_on_then_none_begin_and_those_in_flight_end(serve: Serve) -> None:
    running = serve(REFERENCE, "--threads=1", "--drain-delay=1.5", f"--grace={FOR_EVER}")
    with computing(running, size=3000, kernel=60) as answer, Client(running.address) as client:
        running.process.terminate()  # what computes takes much longer than the drain delay
        until(lambda: http_code(f"{running.http}/readyz") == 503, "readiness to say no")
        np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)

        def is_refused() -> bool:
            with grpc.insecure_channel(running.address) as other:  # the SDK would wait for a server for a while
                try:
                    health(other).Check(health_pb2.HealthCheckRequest(), timeout=5)
                except grpc.RpcError:
                    return True
            return False

        until(is_refused, "the end of the drain delay")
        assert running.process.poll() is None
        assert (answer() == 60**2).all()
    assert running.wait() == 0


@SIGNALS
def test_a_second_signal_ends_it_at_once(serve: Serve, number: signal.Signals) -> None:
    running = serve(REFERENCE, f"--drain-delay={FOR_EVER}")
    running.process.terminate()
    until(lambda: http_code(f"{running.http}/readyz") == 503, "readiness to say no")
    running.process.send_signal(number)
    assert running.wait() == 128 + number


def test_a_second_signal_does_not_wait_for_what_is_computed(serve: Serve) -> None:
    running = serve(REFERENCE, "--threads=1", f"--grace={FOR_EVER}")
    with computing(running, size=3500, kernel=280) as answer:
        running.process.terminate()
        until(lambda: http_code(f"{running.http}/readyz") == 503, "readiness to say no")
        assert running.stop() == 128 + signal.SIGTERM
        with pytest.raises(ServiceUnavailable):
            answer()


def test_the_end_of_standard_input_and_a_signal_are_not_two_signals(serve: Serve) -> None:
    running = serve(REFERENCE, "--exit-on-eof", "--drain-delay=2")
    assert running.process.stdin is not None
    running.process.stdin.close()
    until(lambda: any("draining" in line for line in running.lines), "it to drain")  # which stays said when it has gone
    assert running.stop() == 0


@pytest.mark.parametrize("workers", [1, 2])
@SIGNALS
def test_a_signal_during_the_start_ends_it_with_0(number: signal.Signals, workers: int) -> None:
    command = [sys.executable, "-m", "convolver.server", "--listen=127.0.0.1:0", "--http-listen=none"]
    starting = subprocess.Popen([*command, REFERENCE, f"--workers={workers}"], stderr=subprocess.PIPE, text=True)
    until(lambda: catches(starting.pid, signal.SIGTERM), "its first lines")  # of SIGINT Python takes care before
    starting.send_signal(number)
    _, said = starting.communicate(timeout=60)
    assert (starting.returncode, "Traceback" in said) == (0, False), said


def test_watchers_of_readiness_are_told_before_the_drain_delay(serve: Serve) -> None:
    running = serve(REFERENCE, f"--drain-delay={FOR_EVER}")
    with grpc.insecure_channel(running.address) as channel:
        watch = health(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        next(watch)
        running.process.terminate()
        assert next(watch).status == NOT_SERVING
        with grpc.insecure_channel(running.address) as other:
            assert health(other).Check(health_pb2.HealthCheckRequest(service=SERVICE)).status == NOT_SERVING
        watch.cancel()
    assert running.stop() == 128 + signal.SIGTERM


def test_grpc_cuts_nothing_off_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it does so just when a second stop has ended it, it crashes."""
    graces, grpc_stop = list[float | None](), AioServer.stop

    async def stop(server: AioServer, grace: float | None) -> None:
        graces.append(grace)
        await grpc_stop(server, grace)

    async def run() -> None:
        server = Server(Settings(listen=("127.0.0.1:0",), http_listen=None, backend="reference", grace=0.2))
        await server.start()
        await server.stop()

    monkeypatch.setattr(AioServer, "stop", stop)
    asyncio.run(run())
    first, second = graces
    assert first is not None
    assert first > 600
    assert second is None
