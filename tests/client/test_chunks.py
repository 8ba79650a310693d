"""Calls in chunks give what calls in one message give, in both colours, and their size decides which they are."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.colours import colours
from tests.contract import ANSWER, IMAGE, KERNEL
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.client import Client, Conv, Pool, ServiceUnavailable, _chunks, _chunks_sync, _requests
from convolver.core.errors import IntegerOverflow, LimitExceeded, UnknownLayer
from convolver.core.wire import split

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from tests.client.colours import Called, Calls
    from tests.conftest import RunningServer

    Array = NDArray[Any]

RNG = np.random.default_rng(5)
PICTURE, WEIGHT, BIAS = (RNG.integers(-9, 9, shape).astype(np.float32) for shape in ((2, 3, 9, 8), (4, 3, 3, 3), (4,)))
BACKWARD = RNG.integers(-9, 9, (2, 4, 7, 6)).astype(np.float32)
BITS, MASK = PICTURE > 0, WEIGHT > 0
EMPTY = np.ones((0, 3, 9, 8), np.float32)
BOTH = {"wrt": ("input", "weight"), "bias": True}


DOT = np.ones((1, 1, 1), np.float32)
SLOW = np.ones((1, 1, 750, 750), np.float32), np.ones((1, 1, 251, 251), np.float32)
"""What takes the reference a second or more."""


def a_stack(client: Any) -> Any:  # noqa: ANN401 - of either colour
    return client.stack([client.layer(WEIGHT, BIAS), Pool("max", 2), Conv(np.ones((2, 4, 1, 1), np.float32))])


CALLS: dict[str, Calls] = {
    "a bias": lambda client: client.run(PICTURE, WEIGHT, BIAS, padding="same"),
    "channels last": lambda client: client.run(PICTURE, np.ones((3, 3, 8, 2), np.float32), layout="channels_last"),
    "bool": lambda client: client.run(BITS, MASK),
    "int8 to int32": lambda client: client.run(PICTURE.astype("i1"), WEIGHT.astype("i1"), output_dtype="int32"),
    "complex": lambda client: client.run(PICTURE * 1j, WEIGHT + 2j),
    "strided": lambda client: client.run(PICTURE[..., ::2], WEIGHT[..., ::2]),
    "an empty batch": lambda client: client.run(EMPTY, WEIGHT),
    "an FFT": lambda client: client.run(PICTURE, WEIGHT, algorithm="fft"),
    "gradients": lambda client: client.gradients(PICTURE, WEIGHT, BACKWARD, **BOTH),
    "a layer": lambda client: client.layer(WEIGHT, BIAS).run(PICTURE),
    "a layer's gradients": lambda client: client.layer(WEIGHT).gradients(PICTURE, BACKWARD, **BOTH),
    "a stack": lambda client: a_stack(client).run(PICTURE),
    "a stack's gradients": lambda client: a_stack(client).gradients(PICTURE, np.ones((2, 2, 3, 3), np.float32), **BOTH),
}


@pytest.fixture(scope="module")
def alone(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server that nobody else calls."""
    return serve("--backend=reference")


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes in chunks, of a size that divides nothing."""
    monkeypatch.setattr(_requests, "LARGEST_UNARY", -1)
    monkeypatch.setattr(_chunks, "CHUNK", 77)


def handled(running: RunningServer, method: str) -> float:
    """How many calls of that method it has answered."""
    labels = f'grpc_code="OK",grpc_method="{method}",grpc_service="convolver.v1.ConvolutionService"'
    kind = "unary" if method == "Convolve" else "bidi_stream"
    return metric(running, f'grpc_server_handled_total{{{labels},grpc_type="{kind}"}}')


def leaves(value: Any) -> list[Any]:  # noqa: ANN401 - an answer, or a part of one
    """Its arrays and what else it holds, but for the report, which has times."""
    if isinstance(value, list):
        return [leaf for one in value for leaf in leaves(one)]
    return [value]


@colours
@pytest.mark.parametrize("name", CALLS)
def test_the_answer_is_that_of_one_message(
    alone: RunningServer, called: Called, name: str, request: pytest.FixtureRequest
) -> None:
    whole = called(alone.address, CALLS[name])
    request.getfixturevalue("chunked")
    before = handled(alone, "ConvolveChunked")
    found = called(alone.address, CALLS[name])
    until(lambda: handled(alone, "ConvolveChunked") == before + 1, "the call to be counted")
    for one, other in zip(leaves(list(found[:-1])), leaves(list(whole[:-1])), strict=True):
        np.testing.assert_array_equal(one, other)
        assert getattr(one, "dtype", None) == getattr(other, "dtype", None)
        assert not isinstance(one, np.ndarray) or one.flags.writeable


@colours
@pytest.mark.usefixtures("chunked")
def test_a_layer_that_the_server_does_not_know_is_sent_with_the_call(alone: RunningServer, called: Called) -> None:
    kernel = RNG.integers(-9, 9, (1, 1, 2, 2)).astype(np.float32)
    found = called(alone.address, lambda client: client.layer(kernel)(IMAGE))
    with Client(alone.address) as client:
        np.testing.assert_array_equal(found, client.conv2d(IMAGE, kernel))
        client.delete_layer(client.layer(kernel).digest)
    with pytest.raises(UnknownLayer):
        called(alone.address, lambda client: client.layer(kernel, resend=False)(IMAGE))


@colours
@pytest.mark.usefixtures("chunked")
def test_an_error_is_raised_as_it_was(alone: RunningServer, called: Called) -> None:
    with pytest.raises(IntegerOverflow, match="200"):
        called(alone.address, lambda client: client.conv1d(np.full((1, 1, 3), 100, "i1"), np.full((1, 1, 1), 2, "i1")))


SIZES: dict[str, tuple[Calls, str]] = {
    "small": (lambda client: client.conv1d(np.ones((1, 1, 2**18 - 64), np.float32), DOT), "Convolve"),
    "a large request": (lambda client: client.conv1d(np.ones((1, 1, 2**18), np.float32), DOT), "ConvolveChunked"),
    "a large answer": (lambda client: client.conv1d(DOT, DOT, padding=2**17), "ConvolveChunked"),
}


@colours
@pytest.mark.parametrize(("call", "method"), SIZES.values(), ids=SIZES.keys())
def test_the_larger_of_request_and_answer_decides(
    alone: RunningServer, called: Called, call: Calls, method: str
) -> None:
    before = handled(alone, method)
    called(alone.address, call)
    until(lambda: handled(alone, method) == before + 1, "the call to be counted")


@colours
def test_a_request_may_be_larger_than_a_message_of_the_server(
    serve: Callable[..., RunningServer], called: Called
) -> None:
    picture = np.arange(2**20, dtype=np.float32).reshape(1, 1, 1024, 1024)
    for limit in ("2MiB", "1KiB"):
        running = serve("--backend=reference", f"--max-message={limit}")
        if limit == "2MiB":
            found = called(running.address, lambda client: client.conv2d(picture, np.ones((1, 1, 1, 1), np.float32)))
            np.testing.assert_array_equal(found, picture)
        else:
            with pytest.raises(LimitExceeded) as caught:
                called(running.address, lambda client: client.conv2d(picture, np.ones((1, 1, 1, 1), np.float32)))
            assert caught.value.setting == "--max-message"
        assert running.stop() == 0


def test_messages_hold_all_data_once_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunks, "CHUNK", 10)
    data = [memoryview(bytes(range(size))) for size in (3, 0, 21, 6)]
    known = _requests.Described(b"header", (), 0)
    first, *others = _chunks.messages(_requests.Request(known, data, None))
    assert first == b"\x0a\x06header"
    parts = [split(message)[1] for message in others]
    assert b"".join(b"".join(part) for part in parts) == b"".join(data)
    assert [sum(map(len, part)) for part in parts] == [10, 10, 10]


def test_what_is_stopped_reads_no_more() -> None:
    outgoing = _chunks_sync._Outgoing(iter([b"1", b"2"]))  # noqa: SLF001 - the caller's memory, which nobody sees being read
    assert next(outgoing) == b"1"
    outgoing.stop()
    assert list(outgoing) == []


@pytest.mark.usefixtures("chunked")
def test_an_interrupt_ends_the_call_here_and_on_the_server(alone: RunningServer) -> None:
    def interrupt() -> None:
        until(lambda: metric(alone, "convolver_in_flight") == 1, "the call to be in flight")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with Client(alone.address) as client:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            client.conv2d(*SLOW, algorithm="direct")
        thread.join()
        until(lambda: metric(alone, "convolver_in_flight") == 0, "the server to hear of it")
        np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL), ANSWER)


@pytest.mark.usefixtures("chunked")
def test_a_client_that_is_closed_meanwhile_says_so(alone: RunningServer) -> None:
    failures = list[Exception]()
    client = Client(alone.address)

    def calls() -> None:
        try:
            client.conv2d(*SLOW, algorithm="direct")
        except Exception as failure:  # noqa: BLE001 - which it is, is what is tested
            failures.append(failure)

    thread = threading.Thread(target=calls)
    thread.start()
    until(lambda: metric(alone, "convolver_in_flight") == 1, "the call to be in flight")
    client.close()
    thread.join()
    assert [type(failure) for failure in failures] == [ServiceUnavailable]
    with Client(alone.address) as other:
        np.testing.assert_array_equal(other.conv2d(IMAGE, KERNEL), ANSWER)
