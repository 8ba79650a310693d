"""How a server comes up and goes down: real processes, real signals."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from tests.contract import ANSWER, IMAGE, KERNEL, SERVICE
from tests.wait import until

from convolver.client import Client, ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import RunningServer

    Serve = Callable[..., RunningServer]

REFERENCE = "--backend=reference"
FOR_EVER = "3600"

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def health(channel: grpc.Channel) -> Any:  # noqa: ANN401 - its stubs lack its methods
    return HealthStub(channel)


def check_serves(address: str) -> None:
    with Client(address) as client:
        np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)


def http_code(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - our own http://
            code: int = answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return code


def is_computing(running: RunningServer) -> bool:
    with urllib.request.urlopen(f"{running.http}/metrics", timeout=30) as answer:  # noqa: S310 - our own http://
        return re.search(rb"^convolver_in_flight(\{.*\})? 1\.0$", answer.read(), re.MULTILINE) is not None


@contextmanager
def computing(running: RunningServer, size: int, kernel: int) -> Iterator[Callable[[], np.ndarray[Any, Any]]]:
    """A convolution of ones in flight by direct sums, which take their time, admitted before the block begins. Gives
    a function that waits for its answer.
    """
    image, ones = (np.ones((1, 1, length, length), np.float32) for length in (size, kernel))
    with ThreadPoolExecutor(1) as thread, Client(running.address, timeout=100) as client:
        answer = thread.submit(client.conv2d, image, ones, algorithm="direct")
        until(lambda: is_computing(running), "the convolution to be admitted")
        yield lambda: np.asarray(answer.result(100))  # its thread gives way to all others on a busy machine


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_an_idle_server_with_0(serve: Serve, number: signal.Signals) -> None:
    running = serve(REFERENCE)
    running.process.send_signal(number)
    assert running.wait() == 0
    assert not [line for line in running.lines if "Traceback" in line]


def test_an_open_health_watch_does_not_hold_the_server(serve: Serve) -> None:
    running = serve(REFERENCE, f"--grace={FOR_EVER}")
    with grpc.insecure_channel(running.address) as channel:
        watches = [health(channel).Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", SERVICE)]
        assert [next(watch).status for watch in watches] == [SERVING, SERVING]
        assert running.stop() == 0


def test_a_convolution_in_flight_gets_its_answer_of_many_megabytes(serve: Serve) -> None:
    running = serve(REFERENCE, "--threads=1")
    with computing(running, size=2900, kernel=31) as answer:
        running.process.terminate()
        output = answer()
    assert output.nbytes > 30_000_000
    assert (output == 31**2).all()
    assert running.wait() == 0


def test_what_outlasts_the_grace_is_cut_off(serve: Serve) -> None:
    running = serve(REFERENCE, "--threads=1", "--grace=0.1")
    with computing(running, size=3500, kernel=280) as answer:
        assert running.stop() == 0  # it would compute for many minutes
        with pytest.raises(ServiceUnavailable):
            answer()


def test_during_the_drain_delay_it_is_not_ready_and_serves_on(serve: Serve) -> None:
    running = serve(REFERENCE, f"--drain-delay={FOR_EVER}")
    assert http_code(f"{running.http}/readyz") == 200
    with grpc.insecure_channel(running.address) as channel:
        readiness = health(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(readiness).status == SERVING
        running.process.terminate()
        assert next(readiness).status == NOT_SERVING
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        assert health(channel).Check(request).status == NOT_SERVING
        assert health(channel).Check(health_pb2.HealthCheckRequest()).status == SERVING
        readiness.cancel()
    assert http_code(f"{running.http}/readyz") == 503
    assert http_code(f"{running.http}/healthz") == 200
    check_serves(running.address)
    running.process.kill()
    running.wait()


def test_the_drain_delay_ends(serve: Serve) -> None:
    running = serve(REFERENCE, "--drain-delay=0.2")
    assert running.stop() == 0


def test_under_load_each_call_is_answered_or_refused_as_unavailable(serve: Serve) -> None:
    running = serve(REFERENCE)
    answered = count()

    def call_until_refused() -> Exception:
        with Client(running.address) as client:
            while True:
                try:
                    np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)
                    next(answered)
                except Exception as error:  # noqa: BLE001 - what kind it is is what the test asks
                    return error

    with ThreadPoolExecutor(8) as threads:
        ends = [threads.submit(call_until_refused) for _ in range(8)]
        until(lambda: next(answered) > 200, "some hundred calls")
        assert running.stop() == 0
        assert {type(end.result(60)) for end in ends} == {ServiceUnavailable}


def errors(running: RunningServer) -> list[str]:
    """What a server that could not start said."""
    assert running.wait() == 1
    return running.lines


def test_a_second_server_on_the_same_port_fails_in_one_line(serve: Serve) -> None:
    first = serve(REFERENCE)
    said = errors(serve(REFERENCE, listen=first.address))
    assert said == [f"convolver-server: cannot listen on {first.address}: Address already in use"]
    check_serves(first.address)


def test_a_second_server_on_the_same_socket_fails_in_one_line(serve: Serve, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    first = serve(REFERENCE, listen=address)
    assert errors(serve(REFERENCE, listen=address)) == [
        f"convolver-server: cannot listen on {address}: another server does"
    ]
    check_serves(address)
    assert first.stop() == 0


def test_a_taken_http_port_fails_in_one_line(serve: Serve) -> None:
    first = serve(REFERENCE)
    http = first.http.removeprefix("http://")
    said = errors(serve(REFERENCE, "--http-listen", http))
    assert said == [f"convolver-server: cannot listen on http://{http}: Address already in use"]


def test_a_host_that_is_not_ours_fails_in_one_line(serve: Serve) -> None:
    (line,) = errors(serve(REFERENCE, listen="192.0.2.1:0"))  # a network for documentation: RFC 5737
    assert line.startswith("convolver-server: cannot listen on 192.0.2.1:0: ")


def test_a_socket_in_no_folder_fails_in_one_line(serve: Serve, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/none/socket"
    said = errors(serve(REFERENCE, listen=address))
    assert said == [f"convolver-server: cannot listen on {address}: No such file or directory"]


def test_a_file_in_place_of_the_socket_stays_as_it_is(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (line,) = errors(serve(REFERENCE, listen=f"unix:{tmp_path}/file"))
    assert "no socket" in line
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "precious")]


def test_a_socket_is_served_and_removed(serve: Serve, tmp_path: Path) -> None:
    running = serve(REFERENCE, listen=f"unix:{tmp_path}/socket")
    assert running.address == f"unix:{tmp_path}/socket"
    check_serves(running.address)
    assert running.stop() == 0
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_does_not_prevent_a_start(serve: Serve, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/socket"
    killed = serve(REFERENCE, listen=address)
    killed.process.kill()
    killed.wait()
    assert (tmp_path / "socket").is_socket()
    following = serve(REFERENCE, listen=address)
    check_serves(address)
    assert following.stop() == 0


def test_it_ends_with_its_standard_input(serve: Serve) -> None:
    running = serve(REFERENCE, "--exit-on-eof")
    check_serves(running.address)
    assert running.process.stdin is not None
    running.process.stdin.close()
    assert running.wait() == 0


@pytest.mark.parametrize("redirection", ["</dev/null", "<&-"], ids=["nothing to read", "closed"])
def test_without_a_standard_input_exit_on_eof_ends_it_at_once(redirection: str) -> None:
    command = f'exec "$0" -m convolver.server {REFERENCE} --listen=127.0.0.1:0 --http-listen=none --exit-on-eof'
    shell = ["sh", "-c", f"{command} {redirection}", sys.executable]
    ended = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr


def test_an_address_that_others_reach_is_warned_of(serve: Serve) -> None:
    running = serve(REFERENCE, listen="0.0.0.0:0")
    (warning,) = [line for line in running.lines if "WARNING" in line]
    assert f"{running.address} is open to other machines" in warning
    check_serves(running.address.replace("0.0.0.0", "127.0.0.1"))  # noqa: S104 - what is tested
    assert running.stop() == 0


def test_an_address_of_this_machine_alone_is_not_warned_of(server: RunningServer) -> None:
    assert not [line for line in server.lines if "WARNING" in line]


def started_without(module: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """The server's command where a module is not installed."""
    script = f"import sys; sys.modules[{module!r}] = None; from convolver.server.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, "--listen=127.0.0.1:0", "--http-listen=none", *flags],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    ("module", "extra"), [("torch", "torch"), ("pydantic_settings", "server"), ("grpc_reflection", "server")]
)
def test_what_is_not_installed_is_said_in_one_line(module: str, extra: str) -> None:
    ended = started_without(module, "--backend=torch")
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert module in line
    assert f"pip install 'convolver[{extra}]'" in line


def test_auto_serves_without_torch() -> None:
    ended = started_without("torch", "--exit-on-eof")
    assert (ended.returncode, "listening on" in ended.stderr) == (0, True), ended.stderr


def test_help_loads_neither_grpc_nor_numpy() -> None:
    script = (
        "import sys\nfrom convolver.server.__main__ import main\ntry:\n    main()\n"
        "finally:\n    print('loaded', {'grpc', 'numpy', 'torch'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout.splitlines()[-1]) == (0, "loaded set()")


def test_a_free_port_of_its_own_choice_is_announced(server: RunningServer) -> None:
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30):
        assert int(port) > 0
