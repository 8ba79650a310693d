"""What a caller hears of chunked calls that go wrong on the way, in both colours. The servers are real."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from grpc_status import rpc_status
from tests.client import answering_server
from tests.client.colours import colours
from tests.contract import ANSWER, IMAGE, KERNEL

from convolver.client import Client, DeadlineExceeded, ServiceUnavailable, _chunks, _chunks_sync, _requests
from convolver.core import errors, plan_codec
from convolver.core.status import to_status
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import plan_pb2, tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from tests.client.colours import Called
    from tests.conftest import RunningServer

    from convolver.client._requests import Request

    Behaviour = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]

LARGE = np.ones((1, 1, 2**23), np.float32)
"""More than gRPC takes before it is read."""

DOT = np.ones((1, 1, 1), np.float32)


@pytest.fixture(autouse=True)
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything goes in chunks."""
    monkeypatch.setattr(_requests, "LARGEST_UNARY", -1)


@pytest.fixture(scope="module")
def plan(server: RunningServer) -> plan_pb2.Plan:
    """That of IMAGE with KERNEL."""
    with Client(server.address) as client:
        return plan_codec.plan_to_proto(client.plan(IMAGE.shape, KERNEL.shape))


def serving(behaviour: Behaviour) -> AbstractContextManager[str]:
    """The address of a server in this process that answers each ConvolveChunked like this."""
    return answering_server.answering(ConvolveChunked=behaviour)


def message(plan: plan_pb2.Plan | None = None, *data: bytes, report: bool = False) -> bytes:
    """A part of an answer."""
    response = pb.ConvolveChunkedResponse(data=data)
    if plan is not None:
        response.result.plan.CopyFrom(plan)
    if report:
        response.report.device = "here"
    return response.SerializeToString()


def answering(*parts: bytes) -> Behaviour:
    def behaviour(requests: Iterator[bytes], _: grpc.ServicerContext) -> Iterator[bytes]:
        for _request in requests:
            pass
        yield from parts

    return behaviour


def convolved(client: Any) -> Any:  # noqa: ANN401 - of either colour
    return client.conv2d(IMAGE, KERNEL)


DATA = ANSWER.tobytes()


@colours
def test_result_report_and_data_may_come_in_any_parts(called: Called, plan: plan_pb2.Plan) -> None:
    for parts in (
        [message(plan, DATA, report=True)],
        [message(plan), *(message(None, DATA[i : i + 1]) for i in range(16)), message(report=True)],
        [message(plan, DATA[:3], DATA[3:4]), message(None, b""), message(None, DATA[4:], report=True)],
    ):
        with serving(answering(*parts)) as address:
            np.testing.assert_array_equal(called(address, convolved), ANSWER)


def wrong_answers(plan: plan_pb2.Plan) -> dict[str, list[bytes]]:
    other = plan_pb2.Plan()
    other.CopyFrom(plan)
    other.outputs[0].dtype = tensor_pb2.DATA_TYPE_INT32
    return {
        "without its result": [],
        "result must be in its first message": [message(None, DATA)],
        "first message alone": [message(plan), message(plan, DATA), message(report=True)],
        "ends 1 bytes before": [message(plan, DATA[1:]), message(report=True)],
        "1 bytes or more beyond": [message(plan, DATA), message(None, b"1"), message(report=True)],
        "without its report": [message(plan, DATA)],
        "after its report": [message(plan, DATA[4:], report=True), message(None, DATA[:4])],
        "its tensors would be": [message(other, DATA, report=True)],
        "announces 127 bytes": [b"\x0a\x7f"],
    }


@colours
def test_an_answer_that_is_none_is_the_servers_failure(called: Called, plan: plan_pb2.Plan) -> None:
    for text, parts in wrong_answers(plan).items():
        with serving(answering(*parts)) as address, pytest.raises(errors.BackendFailure, match=text):
            called(address, convolved)


@colours
def test_a_byte_that_is_no_bool_is_the_servers_failure(called: Called, server: RunningServer) -> None:
    bits = np.ones((1, 1, 4), np.bool_)
    with Client(server.address) as client:
        plan = plan_codec.plan_to_proto(client.plan((1, 1, 4), (1, 1, 1), "bool"))
    answer = message(plan, b"\0\1\2\0", report=True)
    with serving(answering(answer)) as address, pytest.raises(errors.BackendFailure, match="bool"):
        called(address, lambda client: client.conv1d(bits, bits[..., :1]))


@colours
@pytest.mark.parametrize("after", [1, 3])
def test_the_servers_word_ends_the_upload_at_once(called: Called, after: int) -> None:
    seen = list[int]()

    def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for _ in range(after):
            seen.append(len(next(requests)))
        context.abort_with_status(rpc_status.to_status(to_status(errors.LimitExceeded("no", "s", 1, 2, "--max-work"))))
        yield b""

    with serving(behaviour) as address:
        for _ in range(20):  # gRPC's asyncio now and then knows first that it cannot write
            with pytest.raises(errors.LimitExceeded) as caught:
                called(address, lambda client: client.conv1d(LARGE, DOT))
            assert caught.value.setting == "--max-work"
    assert len(seen) == 20 * after


@colours
def test_a_call_that_nobody_answers_is_tried_three_times(called: Called, plan: plan_pb2.Plan) -> None:
    seen = list[list[bytes]]()

    def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        seen.append(list(requests))
        if len(seen) % 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        yield message(plan, DATA, report=True)

    with serving(behaviour) as address:
        np.testing.assert_array_equal(called(address, convolved), ANSWER)
    assert seen == [seen[0]] * 3
    assert len(seen[0]) == 2


@colours
@pytest.mark.parametrize("has_begun", [True, False])
def test_a_call_that_breaks_off_is_tried_three_times_too(called: Called, plan: plan_pb2.Plan, has_begun: bool) -> None:  # noqa: FBT001 - parametrised
    seen = list[int]()

    def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        seen.append(len(list(requests)))
        if has_begun:
            yield message(plan, DATA[:4])
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    with serving(behaviour) as address, pytest.raises(ServiceUnavailable, match="gone") as caught:
        called(address, convolved)
    assert len(seen) == len(caught.value.attempts) == 3


@colours
def test_a_timeout_holds_for_all_of_it(called: Called) -> None:
    ended = threading.Event()

    def behaviour(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(ended.set)
        next(requests)
        ended.wait(30)
        yield b""

    with serving(behaviour) as address, pytest.raises(DeadlineExceeded, match=r"within the timeout of 3\.0 s"):
        # time enough to connect: a call that never reaches the handler ends nothing there
        called(address, lambda client: client.conv1d(LARGE, DOT, timeout=3.0))
    assert ended.wait(30)


def test_nobody_reads_the_callers_array_once_the_call_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    is_read, has_ended, late = threading.Event(), threading.Event(), list[bool]()

    def slow(request: Request) -> Iterator[bytes]:
        yield next(_chunks.messages(request))
        is_read.set()
        late.append(has_ended.wait(0.3))
        yield b""

    def behaviour(_requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        is_read.wait(30)
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")
        yield b""

    monkeypatch.setattr(_chunks_sync, "messages", slow)
    with serving(behaviour) as address, Client(address) as client:
        with pytest.raises(errors.BackendFailure, match="INVALID_ARGUMENT: no"):
            client.conv2d(IMAGE, KERNEL)
        has_ended.set()
        assert late == [False]


@colours
def test_a_server_without_chunks_does_not_support_it(called: Called) -> None:
    with answering_server.answering() as address, pytest.raises(errors.Unsupported):
        called(address, convolved)
