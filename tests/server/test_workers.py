"""`--workers N`: one address, N processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL, output
from tests.server.test_lifecycle import FOR_EVER, check_serves, computing, errors, http_code
from tests.server.worker_processes import call_anew, children, children_of, convolved, exposed, has_ended, values
from tests.wait import until

from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

    Serve = Callable[..., RunningServer]

FLAGS = ("--backend=reference", "--workers=2")


@pytest.fixture(scope="module")
def workers(serve: Serve) -> RunningServer:
    """A server of two workers, for the tests that leave them alive."""
    return serve(*FLAGS, "--threads=1")


@pytest.fixture
def stopped_worker(workers: RunningServer) -> Iterator[int]:
    """One of them, which does nothing meanwhile."""
    pid = min(children(workers))
    os.kill(pid, signal.SIGSTOP)
    yield pid
    os.kill(pid, signal.SIGCONT)


def both_have_answered(running: RunningServer) -> bool:
    np.testing.assert_array_equal(output(call_anew(running)), ANSWER)
    return sorted(worker for worker, calls in convolved(running).items() if calls) == ["0", "1"]


def has_replaced(running: RunningServer, count: int) -> bool:
    """Whether so many have died, and two serve."""
    restarts = values(running, "convolver_worker_restarts_total")  # counted once the dead one is not
    return restarts == {"": count} and values(running, "convolver_workers") == {"": 2}


def test_connections_spread_over_the_workers(workers: RunningServer) -> None:
    assert len(children(workers)) == 2
    until(lambda: both_have_answered(workers), "connections to both workers")


def test_the_parent_loads_neither_grpc_nor_numpy_nor_torch(workers: RunningServer) -> None:
    heavy = re.compile(r"/(grpc|numpy|torch)/")
    loaded = {pid: Path(f"/proc/{pid}/maps").read_text() for pid in (workers.process.pid, *children(workers))}
    assert [pid for pid, maps in loaded.items() if not heavy.search(maps)] == [workers.process.pid]


def test_each_worker_has_its_part_of_the_budgets(serve: Serve) -> None:
    running = serve(*FLAGS, "--memory-budget=64MiB")
    with Client(running.address) as client:
        assert client.info().limits["max_request_bytes"] == 2**25
    assert running.stop() == 0


def test_a_killed_worker_is_replaced_and_calls_go_on(serve: Serve) -> None:
    running = serve(*FLAGS)
    with Client(running.address) as client:
        for count, pid in enumerate(children(running), 1):  # one of them has this client's connection
            np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
            os.kill(pid, signal.SIGKILL)
            until(partial(has_ended, pid), "its end")
            np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
            until(partial(has_replaced, running, count), "another worker")
    said = [line for line in running.lines if "was ended by SIGKILL; another takes its place" in line]
    assert sorted(line.split("worker ")[1][0] for line in said) == ["0", "1"]
    until(lambda: both_have_answered(running), "connections to both new workers")
    assert running.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_drains_all_workers(serve: Serve, number: signal.Signals) -> None:
    running = serve(*FLAGS)
    pids = children(running)
    running.process.send_signal(number)
    assert running.wait() == 0
    assert sum("convolver.server.server" in line and line.endswith(": stopped") for line in running.lines) == 2
    assert all(map(has_ended, pids))


def test_a_call_in_flight_gets_its_answer(serve: Serve) -> None:
    running = serve(*FLAGS, "--threads=1")
    with computing(running, size=2900, kernel=31) as answer:
        running.process.terminate()
        assert (answer() == 31**2).all()
    assert running.wait() == 0


def test_during_the_drain_delay_it_is_not_ready_serves_on_and_a_second_signal_ends_it(serve: Serve) -> None:
    running = serve(*FLAGS, f"--drain-delay={FOR_EVER}")
    pids = children(running)
    assert http_code(f"{running.http}/readyz") == 200
    running.process.terminate()
    until(lambda: http_code(f"{running.http}/readyz") == 503, "readiness to say no")
    assert http_code(f"{running.http}/healthz") == 200
    check_serves(running.address)
    assert set(values(running, "convolver_in_flight")) == {"0", "1"}
    running.process.send_signal(signal.SIGINT)
    assert running.wait() == 128 + signal.SIGINT
    until(lambda: all(map(has_ended, pids)), "the end of the workers")


def test_workers_end_with_their_parent(serve: Serve) -> None:
    running = serve(*FLAGS)
    pids = children(running)
    running.process.kill()
    running.wait()
    until(lambda: all(map(has_ended, pids)), "the end of the workers")


def test_it_ends_with_its_standard_input(serve: Serve) -> None:
    running = serve(*FLAGS, "--exit-on-eof")
    assert running.process.stdin is not None
    running.process.stdin.close()
    assert running.wait() == 0


@pytest.mark.parametrize("second", [FLAGS, FLAGS[:1]], ids=["with workers", "without"])
def test_a_second_server_on_the_same_port_fails_in_one_line(
    workers: RunningServer, serve: Serve, second: tuple[str, ...]
) -> None:
    said = errors(serve(*second, listen=workers.address))
    assert said == [f"convolver-server: cannot listen on {workers.address}: Address already in use"]


def test_workers_do_not_share_the_port_of_another_server(server: RunningServer, serve: Serve) -> None:
    said = errors(serve(*FLAGS, listen=server.address))
    assert said == [f"convolver-server: cannot listen on {server.address}: Address already in use"]


def test_a_taken_http_port_fails_in_one_line(workers: RunningServer, serve: Serve) -> None:
    http = workers.http.removeprefix("http://")
    said = errors(serve(*FLAGS, "--http-listen", http))
    assert said == [f"convolver-server: cannot listen on http://{http}: Address already in use"]


def test_what_prevents_the_workers_from_starting_is_said_once(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch today')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    said = errors(serve("--backend=torch", "--workers=2"))
    assert said == ["convolver-server: back end torch: no torch today; pip install 'convolver[torch]'"]


def test_workers_that_end_at_once_again_and_again_end_the_server(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("import os\nos._exit(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    *warnings, last = errors(serve("--backend=torch", "--workers=2"))
    assert last == "convolver-server: the workers do not start; the last ended with exit code 3"
    assert 4 <= len(warnings) <= 8, warnings
    assert all("ended with exit code 3; another takes its place" in line for line in warnings)


def test_an_error_of_the_parents_own_ends_it_and_its_workers() -> None:
    """Here it cannot say where it listens."""
    reading, writing = os.pipe()
    command = (sys.executable, "-m", "convolver.server", *FLAGS, "--listen=127.0.0.1:0", "--http-listen=")
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=writing) as server:
        os.close(writing)
        os.close(reading)
        seen = set[int]()

        def has_failed() -> bool:
            seen.update(children_of(server.pid))
            return server.poll() is not None

        try:
            until(has_failed, "the server to end")
        finally:
            server.kill()
    assert server.returncode == 1
    assert len(seen) == 2
    until(lambda: all(map(has_ended, seen)), "its workers to end")


def test_each_metric_is_described_once_and_told_of_each_worker(workers: RunningServer) -> None:
    text = exposed(workers)
    described = re.findall(r"^# (?:HELP|TYPE) .*?(?= )", text, re.MULTILINE)
    assert len(described) == len(set(described)) > 20
    of_workers = {line for line in text.splitlines() if not line.startswith(("#", "convolver_worker"))}
    assert {line for line in of_workers if 'worker="0"' not in line and 'worker="1"' not in line} == set()
    assert sum('worker="0"' in line for line in of_workers) > 100


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say_about_them(workers: RunningServer) -> None:
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=exposed(workers), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_worker_that_does_not_answer_is_left_out_and_counted(workers: RunningServer, stopped_worker: int) -> None:
    assert not has_ended(stopped_worker)
    assert len(values(workers, "convolver_in_flight")) == 1
    assert values(workers, "convolver_workers_silent") == {"": 1.0}
    assert http_code(f"{workers.http}/readyz") == 200


def test_a_worker_that_answers_again_is_told_of_again(workers: RunningServer) -> None:
    until(lambda: set(values(workers, "convolver_in_flight")) == {"0", "1"}, "both")
    assert values(workers, "convolver_workers_silent") == {"": 0.0}


def test_shared_memory_is_one_workers_until_that_dies(serve: Serve) -> None:
    running = serve(*FLAGS, "--shared-memory")
    image, kernel = np.ones((1, 1, 1024, 1024), np.float32), np.ones((1, 1, 3, 3), np.float32)

    def is_used() -> bool:
        assert (client.conv2d(image, kernel)[..., 1:-1, 1:-1] == 9).all()
        return sorted(map(bool, values(running, "convolver_shared_regions").values())) == [False, True]

    with Client(running.address) as client:
        for count, pid in enumerate(children(running), 1):
            until(is_used, "regions of one worker")
            os.kill(pid, signal.SIGKILL)
            assert (client.conv2d(image, kernel) == 9).all()
            until(partial(has_replaced, running, count), "another worker")
        until(is_used, "regions of one worker")
    assert running.stop() == 0
