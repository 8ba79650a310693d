"""A client's connection: addresses, timeouts, threads, forks, and its end."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.colours import colours
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.wait import until

from convolver.client import AsyncClient, Client, DeadlineExceeded, ServiceUnavailable
from convolver.core.errors import InvalidConvolution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from tests.client.colours import Called
    from tests.conftest import RunningServer

BIG = np.ones((1, 1, 3000, 3000), np.float32)
WIDE = np.ones((1, 1, 15, 15), np.float32)
"""Together they take the reference a tenth of a second or more."""

MANY = np.ones((4, 1, 1000, 1000), np.float32)
WIDER = np.ones((1, 1, 101, 101), np.float32)
"""As direct sums they take one thread of it several seconds, in blocks of a fraction of one: it stops after one of them
where nobody waits any more.
"""


def slow(client: Client, timeout: float | None = None) -> NDArray[Any]:
    output: NDArray[Any] = client.conv2d(BIG, WIDE, backend="reference", timeout=timeout)
    return output


def is_computing(running: RunningServer) -> bool:
    with urllib.request.urlopen(f"{running.http}/metrics", timeout=30) as answer:  # noqa: S310 - our own http://
        return b"\nconvolver_in_flight 1.0\n" in answer.read()


@pytest.fixture(scope="module")
def alone(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server that nobody else calls, of one thread."""
    return serve("--backend=reference", "--threads=1")


@pytest.fixture
def refusing_address() -> Iterator[str]:
    """An address where nobody listens, and nobody will while the test runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("timeout", [0, -1.5, float("nan"), "5"])
@colours
def test_what_is_no_time_is_refused_by_calls_and_clients(called: Called, server: RunningServer, timeout: Any) -> None:  # noqa: ANN401 - what is wrong
    for refused in (
        lambda: called(server.address, lambda client: client.conv2d(IMAGE, KERNEL, timeout=timeout)),
        lambda: Client(server.address, timeout=timeout),
        lambda: AsyncClient(server.address, timeout=timeout),
    ):
        with pytest.raises(InvalidConvolution, match=r"timeout is .* above 0") as caught:
            refused()
        assert caught.value.field == "timeout"


def test_nobody_at_the_address_is_said_with_the_address(refusing_address: str) -> None:
    with Client(refusing_address, timeout=None) as client, pytest.raises(ServiceUnavailable) as caught:
        client.info()
    assert refusing_address in caught.value.message
    assert isinstance(caught.value, ConnectionError)


def test_no_socket_at_the_path_is_said_with_the_path(tmp_path: os.PathLike[str]) -> None:
    address = f"unix:{tmp_path}/socket"
    with Client(address, timeout=None) as client, pytest.raises(ServiceUnavailable, match=f"^{address}: "):
        client.plan((1, 1, 3), (1, 1, 2))


def test_a_host_that_does_not_exist_is_said(refusing_address: str) -> None:
    port = refusing_address.rpartition(":")[2]
    address = f"no-such-host.invalid:{port}"  # never resolves: RFC 6761
    with Client(address) as client, pytest.raises(ServiceUnavailable, match=f"^{address}: "):
        client.info()


def test_a_server_that_speaks_no_grpc_is_unavailable(alone: RunningServer) -> None:
    with Client(alone.http.removeprefix("http://")) as client, pytest.raises(ServiceUnavailable):
        client.info()


def test_the_address_may_stand_in_the_environment(alone: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOLVER_ADDRESS", alone.address)
    with Client() as client:
        assert client.address == alone.address
        assert [backend.name for backend in client.info().backends] == ["reference"]


def test_an_argument_wins_over_the_environment(alone: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOLVER_ADDRESS", "127.0.0.1:1")
    with Client(alone.address) as client:
        assert client.info().backends


def test_a_proxy_of_the_environment_is_not_asked(alone: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with Client(alone.address) as client:
        assert client.info().backends


def test_a_deadline_that_passes_names_address_and_timeout(alone: RunningServer) -> None:
    with Client(alone.address, timeout=0.05) as client:
        with pytest.raises(DeadlineExceeded, match=rf"^{alone.address}: no answer within .*0\.05 s") as caught:
            client.conv2d(BIG, WIDE)
        assert isinstance(caught.value, TimeoutError)
        np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL, timeout=60), ANSWER)


def test_a_call_may_have_a_timeout_of_its_own(alone: RunningServer) -> None:
    with Client(alone.address, timeout=0.02) as client:
        assert slow(client, timeout=None).shape == (1, 1, 2986, 2986)
        assert client.plan((1, 1, 3, 3), (1, 1, 2, 2), timeout=60).output_shape == ANSWER.shape


def test_threads_may_share_a_client(client: Client) -> None:
    def calls(thread: int) -> bool:
        return all(np.array_equal(client.conv2d(thread * IMAGE, KERNEL), thread * ANSWER) for _ in range(20))

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(calls, range(16))) == [True] * 16


def test_threads_may_make_the_connection_at_once(alone: RunningServer) -> None:
    for _ in range(5):
        with Client(alone.address) as client, ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(lambda _, client=client: client.conv2d(IMAGE, KERNEL), range(16)))
            np.testing.assert_array_equal(answers, [ANSWER] * 16)


def test_closing_twice_does_nothing_more(alone: RunningServer) -> None:
    client = Client(alone.address)
    client.info()
    client.close()
    client.close()


def test_a_client_that_was_never_used_may_be_closed() -> None:
    with Client("127.0.0.1:1"):
        pass


@pytest.mark.parametrize(
    "call", [Client.info, slow, lambda client: client.address], ids=["info", "convolve", "address"]
)
def test_a_closed_client_says_so(alone: RunningServer, call: Callable[[Client], object]) -> None:
    with Client(alone.address) as client:
        client.info()
    with pytest.raises(RuntimeError, match=r"^the client is closed$"):
        call(client)


def test_a_call_in_flight_when_the_client_is_closed_is_unavailable(alone: RunningServer) -> None:
    client = Client(alone.address)
    until(lambda: not is_computing(alone), "the server to be idle")
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(client.conv2d, MANY, WIDER, algorithm="direct")  # which is closed long before its end
        until(lambda: is_computing(alone), "the convolution to be admitted")
        client.close()
        with pytest.raises(ServiceUnavailable):
            answer.result(60)


def test_threads_that_call_while_it_is_closed_hear_one_of_two_things(alone: RunningServer) -> None:
    def call_until_closed(client: Client) -> Exception:
        try:
            while True:
                client.conv2d(IMAGE, KERNEL)
        except Exception as error:  # noqa: BLE001 - what kind it is is what the test asks
            return error

    for _ in range(10):
        client = Client(alone.address)
        client.info()
        with ThreadPoolExecutor(4) as threads:
            ends = [threads.submit(call_until_closed, client) for _ in range(4)]
            client.close()
        assert {type(end.result(60)) for end in ends} <= {RuntimeError, ServiceUnavailable}


FORKED = """
import os, sys
import numpy as np
from convolver.client import Client
client = Client(sys.argv[1], timeout=30)
kernel = np.ones((1, 1, 2, 2), np.float32)

def calls(value):
    image = np.full((1, 1, 3, 3), value, np.float32)
    for _ in range(100):
        assert (client.conv2d(image, kernel) == 4 * value).all()

calls(1)
children = []
for number in range(3):
    children.append(os.fork())
    if not children[-1]:
        calls(number)
        client.close()
        os._exit(0)
calls(10)
print([os.waitpid(child, 0)[1] for child in children])
calls(1)
"""


def test_a_client_works_on_all_sides_of_forks_at_once(alone: RunningServer) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORKED, alone.address], capture_output=True, text=True, timeout=100, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "[0, 0, 0]\n", "")
