"""ConvolveStream as bytes: many requests on one call, each answered when it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from tests.contract import ANSWER, IMAGE, KERNEL, call, convolution, good_request, output, request
from tests.server.layer_calls import ABSENT, metric
from tests.server.stream_calls import (
    LABELS,
    RECEIVED,
    SENT,
    OpenStream,
    item,
    of_dtype,
    ordinary,
    padded,
    quick,
    slow,
    status,
    tensor,
)
from tests.wait import until

from convolver.v1 import convolution_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    from convolver.v1.convolution_pb2 import Convolution

COMPUTED = 'convolver_phase_seconds_count{backend="reference",phase="compute"}'
IN_FLIGHT = "convolver_in_flight"
MACS_SERIES = 'convolver_macs_total{backend="reference",dtype="float32",operation="conv2d"}'
WINDOW = 4


@pytest.fixture(scope="module")
def pair(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server with two threads, so that what is quick may overtake what is slow."""
    return serve("--backend=reference", "--threads=2")


@pytest.fixture(scope="module")
def narrow(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server with one thread and a small window."""
    return serve("--backend=reference", "--threads=1", f"--stream-window={WINDOW}")


@pytest.fixture
def stream(pair: RunningServer) -> Iterator[OpenStream]:
    with grpc.insecure_channel(pair.address) as channel, OpenStream(channel) as opened:
        yield opened


def test_each_of_many_answers_is_that_of_convolve(pair: RunningServer) -> None:
    rng = np.random.default_rng(0)
    shapes = [((1, 2, 3 + n % 5, 4), (1 + n % 3, 2, 2, 2)) for n in range(60)]
    requests: list[tuple[Any, ...]] = [
        (convolution(*each), *(rng.random(s, np.float32) for s in reversed(each))) for each in shapes
    ]
    with grpc.insecure_channel(pair.address) as channel, OpenStream(channel) as stream:
        stream.send(*(item(1000 + n, *each) for n, each in enumerate(requests)))
        stream.close()
        answers = {answer.id: answer for answer in stream}
        assert stream.call.code() == grpc.StatusCode.OK
        assert sorted(answers) == [1000 + n for n in range(60)]
        for n, (header, *data) in enumerate(requests):
            alone = pb.ConvolveResponse.FromString(call(channel, request(header, *data)))
            assert answers[1000 + n].result.plan == alone.result.plan
            assert list(answers[1000 + n].data) == list(alone.data)


def test_the_data_of_an_answer_is_aligned_to_16_bytes(stream: OpenStream) -> None:
    for number in (2**n for n in range(0, 64, 7)):
        stream.send(quick(number))
        raw = next(stream.call)
        assert raw.index(pb.ConvolveStreamResponse.FromString(raw).data[0]) % 16 == 0


def test_what_is_quick_overtakes_what_is_slow(stream: OpenStream) -> None:
    stream.send(slow(7), *map(quick, range(20, 30)))
    answers = [stream.next() for _ in range(11)]
    assert sorted(answer.id for answer in answers[:10]) == list(range(20, 30))
    assert answers[10].id == 7
    assert (tensor(answers[10]) == 40_000).all()
    for answer in answers[:10]:
        np.testing.assert_array_equal(tensor(answer), ANSWER)


def overflowing() -> tuple[Convolution, NDArray[Any], NDArray[Any]]:
    header = convolution((1, 1, 2), (1, 1, 2), of_dtype("int8"))
    return header, np.full((1, 1, 2), 100, np.int8), np.full((1, 1, 2), 100, np.int8)


def of_an_unknown_layer() -> Convolution:
    return convolution_pb2.Convolution(layers=[convolution_pb2.Layer(digest=ABSENT)], input=convolution().input)


def on_no_back_end() -> Convolution:
    header = convolution()
    header.execution.backend = "torch:cuda:99"
    return header


def too_large() -> Convolution:
    header = convolution((1, 1, 1), (1, 1, 1))
    header.layers[0].definition.parameters.explicit_padding.begin.append(0)
    header.layers[0].definition.parameters.explicit_padding.end.append(10**9)
    return header


FAILING: dict[str, tuple[Any, ...]] = {
    "INVALID_ARGUMENT": (convolution((1, 3, 5, 5)), KERNEL, IMAGE),
    "INVALID_ARGUMENT, no convolution": (convolution_pb2.Convolution(),),
    "INVALID_ARGUMENT, no data": (convolution(),),
    "UNIMPLEMENTED": (on_no_back_end(), KERNEL, IMAGE),
    "RESOURCE_EXHAUSTED": (too_large(), KERNEL),
    "NOT_FOUND": (of_an_unknown_layer(), IMAGE),
    "OUT_OF_RANGE": overflowing(),
}


def opened(found: status_pb2.Status) -> tuple[int, str, list[Any]]:
    """A status with what its details hold: the entries of a map have no order among bytes."""
    details: list[Any] = []
    for packed in found.details:
        kind = getattr(error_details_pb2, packed.type_url.rpartition(".")[2])
        details.append(kind.FromString(packed.value))
    return found.code, found.message, details


@pytest.mark.parametrize("name", FAILING)
def test_what_fails_has_the_status_of_convolve_and_ends_nothing(pair: RunningServer, name: str) -> None:
    header, *data = FAILING[name]
    with grpc.insecure_channel(pair.address) as channel, OpenStream(channel) as stream:
        with pytest.raises(grpc.RpcError) as caught:
            call(channel, request(header, *data))
        alone = rpc_status.from_call(cast("grpc.Call", caught.value))
        assert alone is not None
        assert code_pb2.Code.Name(alone.code) == name.partition(",")[0]
        stream.send(item(5, header, *data))
        answer = stream.next()
        assert (answer.id, opened(status(answer))) == (5, opened(alone))
        assert not answer.data
        stream.send(quick(6))
        np.testing.assert_array_equal(tensor(stream.next()), ANSWER)


def test_an_id_in_flight_is_refused_and_the_one_that_has_it_answered(stream: OpenStream) -> None:
    stream.send(slow(1), quick(1), quick(2))
    answers = [stream.next() for _ in range(3)]
    refused = next(answer for answer in answers if answer.WhichOneof("outcome") == "status")
    code, text, details = opened(status(refused))
    assert (refused.id, code) == (1, code_pb2.INVALID_ARGUMENT)
    assert "id is 1, which is in flight" in text
    assert [violation.field for violation in details[1].field_violations] == ["id"]
    results = {answer.id: tensor(answer) for answer in answers if answer is not refused}
    assert sorted(results) == [1, 2]
    assert (results[1] == 40_000).all()


@pytest.mark.parametrize("first", [quick(3), item(3, convolution_pb2.Convolution())], ids=["answered", "refused"])
def test_an_id_may_be_used_again_after_its_answer(stream: OpenStream, first: bytes) -> None:
    stream.send(first)
    assert stream.next().id == 3
    for _ in range(3):
        stream.send(quick(3))
        np.testing.assert_array_equal(tensor(stream.next()), ANSWER)


def test_a_request_whose_time_is_over_is_answered_without_the_others(stream: OpenStream) -> None:
    stream.send(slow(1, timeout=0.05), quick(2, timeout=60), quick(3, timeout=float("inf")), quick(4, timeout=1e300))
    answers = {answer.id: answer for answer in (stream.next() for _ in range(4))}
    expired = status(answers.pop(1))
    assert (expired.code, "timeout of 0.05 s" in expired.message) == (code_pb2.DEADLINE_EXCEEDED, True)
    assert sorted(answers) == [2, 3, 4]
    for answer in answers.values():
        np.testing.assert_array_equal(tensor(answer), ANSWER)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("-inf")], ids=str)
def test_a_timeout_that_is_none_is_refused_by_name(stream: OpenStream, timeout: float) -> None:
    stream.send(quick(9, timeout=timeout))
    code, text, details = opened(status(stream.next()))
    assert (code, f"timeout_seconds is {timeout}" in text) == (code_pb2.INVALID_ARGUMENT, True)
    assert details[1].field_violations[0].field == "timeout_seconds"
    stream.send(quick(9))
    np.testing.assert_array_equal(tensor(stream.next()), ANSWER)


@pytest.mark.parametrize("message", [b"\x08", b"\x0f", b"\x12\x05ab"], ids=["cut off", "no wire type", "too short"])
def test_a_message_that_is_none_ends_the_stream_once_those_before_are_answered(
    pair: RunningServer, message: bytes
) -> None:
    with grpc.insecure_channel(pair.address) as channel:
        for count in [*range(4)] * 10:  # whichever of their answers is being written then
            with OpenStream(channel) as stream:
                stream.send(*map(quick, range(count)), message, quick(9))
                assert sorted(stream.next().id for _ in range(count)) == list(range(count))
                said = stream.failure()
                assert (said.code, said.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONVOLUTION")


def test_a_header_of_megabytes_ends_the_stream_before_it_is_parsed(stream: OpenStream) -> None:
    header = convolution()
    header.layers.extend([header.layers[0]] * 100_000)
    stream.send(item(1, header))
    said = stream.failure()
    assert (said.code, said.info.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")


def test_a_stream_without_requests_ends_well(stream: OpenStream) -> None:
    stream.close()
    assert list(stream) == []
    assert stream.call.code() == grpc.StatusCode.OK


def test_who_does_not_read_is_not_read(narrow: RunningServer) -> None:
    received, sent = metric(narrow, RECEIVED), metric(narrow, SENT)

    def taken() -> float:
        return metric(narrow, RECEIVED) - received

    with grpc.insecure_channel(narrow.address) as channel, OpenStream(channel) as stream:
        stream.send(*map(padded, range(40)))
        until(lambda: taken() - (metric(narrow, SENT) - sent) == WINDOW, "the window to fill")
        for _ in range(100):  # in which time it would have taken the others
            np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)
        waits = taken()
        assert waits < 40
        for _ in range(100):
            np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)
        assert (taken(), taken() - (metric(narrow, SENT) - sent)) == (waits, WINDOW)
        assert sorted(stream.next().id for _ in range(40)) == list(range(40))
        assert taken() == 40


def test_a_cancelled_stream_takes_what_waits_out_of_the_queue_and_stops_what_runs(narrow: RunningServer) -> None:
    before, macs = metric(narrow, COMPUTED), metric(narrow, series := MACS_SERIES)
    with grpc.insecure_channel(narrow.address) as channel, OpenStream(channel) as stream:
        stream.send(slow(0), *map(ordinary, range(1, WINDOW)))
        until(lambda: metric(narrow, IN_FLIGHT) == WINDOW, "all to be admitted")
        stream.call.cancel()
        until(lambda: metric(narrow, IN_FLIGHT) == 0, "what ran already to stop")
    assert metric(narrow, COMPUTED) == before
    assert metric(narrow, series) == macs
    assert not [line for line in narrow.lines if "Traceback" in line or "never retrieved" in line]


def test_a_draining_server_finishes_what_it_took_and_says_that_it_drains(serve: Callable[..., RunningServer]) -> None:
    running = serve("--backend=reference", "--threads=1", "--grace=3600")
    with grpc.insecure_channel(running.address) as channel, OpenStream(channel) as idle, OpenStream(channel) as busy:
        idle.send(quick(0))
        np.testing.assert_array_equal(tensor(idle.next()), ANSWER)
        busy.send(slow(1), ordinary(2), ordinary(3))
        until(lambda: metric(running, IN_FLIGHT) == 3, "all to be admitted")
        running.process.terminate()
        assert idle.failure().code == grpc.StatusCode.UNAVAILABLE
        answers = [busy.next() for _ in range(3)]
        assert [answer.id for answer in answers] == [1, 2, 3]
        assert (tensor(answers[0]) == 40_000).all()
        said = busy.failure()
        assert (said.code, "draining" in said.text) == (grpc.StatusCode.UNAVAILABLE, True)
        assert running.wait() == 0
    assert not [line for line in running.lines if "Traceback" in line or "never retrieved" in line]


def test_metrics_count_requests_bytes_products_and_refusals(narrow: RunningServer) -> None:
    names = (
        RECEIVED,
        SENT,
        "convolver_received_bytes_total",
        "convolver_sent_bytes_total",
        COMPUTED,
        MACS_SERIES,
        'convolver_refused_total{reason="INVALID_CONVOLUTION"}',
        LABELS.join(("grpc_server_handled_total", "")).replace("{", '{grpc_code="OK",'),
    )
    before = [metric(narrow, name) for name in names]
    messages = [quick(1), quick(2), item(3, convolution((1, 3, 5, 5)))]
    with grpc.insecure_channel(narrow.address) as channel, OpenStream(channel) as stream:
        stream.send(*messages)
        stream.close()
        answers = list(stream.call)
    sizes = [sum(map(len, each)) for each in (messages, answers)]
    grown = [metric(narrow, name) - old for name, old in zip(names, before, strict=True)]
    assert grown == [3, 3, *sizes, 2, 32, 1, 1]
