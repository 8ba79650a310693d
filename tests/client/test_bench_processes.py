"""What is said of processes, against processes of which it is known."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.wait import until

from convolver.client import Client, ServiceUnavailable
from convolver.client.bench import Exposition, Processes, Usage, listeners

if TYPE_CHECKING:
    from tests.conftest import RunningServer

MIB = 1 << 20

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux has /proc")

HOLDING = """
import sys
for line in sys.stdin:
    bytes(bytearray(b"x") * int(line))
    print("done", flush=True)
"""


def holding(process: subprocess.Popen[str], size: int) -> None:
    """Lets the process hold that many bytes for a moment."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{size}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_the_peak_is_that_since_the_start() -> None:
    command = [sys.executable, "-c", HOLDING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        meter = Processes([process.pid])
        peaks = []
        for size in (200 * MIB, 20 * MIB):
            meter.start()
            holding(process, size)
            used = meter.stop()
            assert used.peak_bytes is not None
            assert used.idle_bytes is not None
            peaks.append(used.peak_bytes - used.idle_bytes)
        assert process.stdin
        process.stdin.close()
    assert peaks[0] >= 200 * MIB
    assert 20 * MIB <= peaks[1] < 200 * MIB


def test_processor_time_is_that_since_the_start() -> None:
    meter = Processes([os.getpid()])
    meter.start()
    begun = time.process_time()
    until(lambda: sum(range(100_000)) and time.process_time() - begun > 0.2, "this process to have worked")
    used = meter.stop()
    assert used.cpu_seconds is not None
    assert used.cpu_seconds > 0.1


def test_several_processes_are_taken_together() -> None:
    one, both = Processes([os.getpid()]), Processes([os.getpid()] * 2)
    one.start()
    both.start()
    first, second = one.stop().peak_bytes, both.stop().peak_bytes
    assert first is not None
    assert second == pytest.approx(2 * first, rel=0.01)


@pytest.mark.parametrize("pids", [[], [2**22 + 1]])
def test_nothing_is_known_of_no_process(pids: list[int]) -> None:
    meter = Processes(pids)
    meter.start()
    assert meter.stop() == Usage()


def test_metrics_tell_of_a_server_elsewhere(server: RunningServer) -> None:
    meter = Exposition(f"{server.http}/metrics")
    meter.start()
    with Client(server.address) as client:
        client.info()
    used = meter.stop()
    assert used.cpu_seconds is not None
    assert used.cpu_seconds >= 0
    assert used.idle_bytes is not None
    assert used.peak_bytes is not None
    assert used.peak_bytes >= used.idle_bytes > 10 * MIB


def test_what_is_no_exposition_is_refused(server: RunningServer) -> None:
    with pytest.raises(ServiceUnavailable, match=r"healthz: there is no process_cpu_seconds_total"):
        Exposition(f"{server.http}/healthz").start()


def test_the_process_behind_a_port_is_found(server: RunningServer) -> None:
    port = server.address.rpartition(":")[2]
    for address in (server.address, f"dns:///localhost:{port}", f"127.0.0.1:{port},127.0.0.2:{port}"):
        assert listeners(address) == [server.process.pid]


def test_the_process_behind_a_unix_socket_is_found(serve: Callable[..., RunningServer], tmp_path: Path) -> None:
    server = serve(listen=f"unix:{tmp_path}/socket")
    assert listeners(f"unix:{tmp_path}/socket") == [server.process.pid]
    assert server.stop() == 0


@pytest.mark.parametrize("address", ["unix:/nowhere/socket", "example.org:50051", "nonsense"])
def test_where_there_is_no_process_none_is_found(address: str) -> None:
    assert listeners(address) == []


def test_a_port_where_nobody_listens_has_no_process() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        assert listeners(f"127.0.0.1:{bound.getsockname()[1]}") == []


def test_who_calls_from_a_port_does_not_listen_there(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", int(server.address.rpartition(":")[2]))) as call:
        assert listeners(f"127.0.0.1:{call.getsockname()[1]}") == []
