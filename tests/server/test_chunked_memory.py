"""What ConvolveChunked holds and when: admission on the header, within the budget, in the order of arrival."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL, convolution
from tests.server.chunked_calls import IN_FLIGHT, MEMORY, RECEIVED, OpenCall, chunks, data_of, first, more, whole
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.core import request_codec
from convolver.core.operation import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

    from convolver.v1 import plan_pb2
    from convolver.v1.convolution_pb2 import Convolution

MIB = 2**20
ITEMS, ITEM = 16, 4 * MIB


@pytest.fixture(scope="module")
def tight(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server that holds one of `large()` at a time."""
    return serve("--backend=reference", "--memory-budget=200MiB", "--threads=2")


@pytest.fixture
def channel(tight: RunningServer) -> Iterator[grpc.Channel]:
    """To that server, which holds nothing after each test."""
    with grpc.insecure_channel(tight.address) as channel:
        yield channel
        until(lambda: metric(tight, IN_FLIGHT) == metric(tight, MEMORY) == 0, "nothing to be left")


def large(*, deterministic: bool = False) -> Convolution:
    """Takes 64 MiB and gives as much; in pieces unless it is deterministic."""
    header = convolution((ITEMS, 1, 1024, 1024), (1, 1, 1, 1))
    header.execution.deterministic = deterministic
    return header


def peak_bytes(plan: plan_pb2.Plan) -> int:
    return plan.input_bytes + plan.output_bytes + plan.workspace_bytes


def data(value: float) -> bytes:
    return np.float32(value).tobytes() + np.ones(ITEMS * ITEM // 4, np.float32).tobytes()


@pytest.mark.parametrize("deterministic", [True, False], ids=["whole", "in pieces"])
def test_two_that_do_not_fit_together_run_one_after_the_other(
    tight: RunningServer, channel: grpc.Channel, *, deterministic: bool
) -> None:
    asked, before = large(deterministic=deterministic), metric(tight, RECEIVED)
    with OpenCall(channel, first(asked)) as one, OpenCall(channel) as two:
        until(lambda: metric(tight, MEMORY) >= 2 * ITEMS * ITEM, "the admission of the first")
        two.send(first(asked), *chunks(data(3), MIB))
        until(lambda: metric(tight, IN_FLIGHT) == 2, "the second to wait")
        one.send(*chunks(data(2), MIB))
        until(lambda: metric(tight, RECEIVED) == before + 2 + 65, "the data of the first, and nothing of the second")
        assert metric(tight, MEMORY) <= 200 * MIB
        one.close()
        two.close()
        assert one.answer().data == np.full(ITEMS * ITEM // 4, 2, np.float32).tobytes()
        assert two.answer().data == np.full(ITEMS * ITEM // 4, 3, np.float32).tobytes()


def test_who_leaves_the_queue_makes_room_for_the_next(tight: RunningServer, channel: grpc.Channel) -> None:
    with OpenCall(channel, first(large())):
        until(lambda: metric(tight, MEMORY) >= 2 * ITEMS * ITEM, "the admission of the first")
        with (
            OpenCall(channel, first(large())),
            OpenCall(channel, first(convolution()), more(data_of(KERNEL, IMAGE))) as small,
        ):
            until(lambda: metric(tight, IN_FLIGHT) == 3, "both to wait")
            small.close()
        with OpenCall(channel, first(convolution()), more(data_of(KERNEL, IMAGE))) as small:
            small.close()
            assert small.answer().data == ANSWER.tobytes()


def test_pieces_are_no_reason_to_wait_for_ever(serve: Callable[..., RunningServer]) -> None:
    """By the plan of the whole it fits to the byte; its pieces would need more."""
    with (
        grpc.insecure_channel(serve("--backend=reference").address) as channel,
        OpenCall(channel, first(large())) as call,
    ):
        peak = peak_bytes(call.next().result.plan)
    running = serve("--backend=reference", f"--memory-budget={peak}")
    with grpc.insecure_channel(running.address) as channel:
        answer = whole(channel, [first(large()), *chunks(data(2))])
    assert answer.data == np.full(ITEMS * ITEM // 4, 2, np.float32).tobytes()


def test_what_an_fft_may_turn_into_is_held_from_the_start(tight: RunningServer, channel: grpc.Channel) -> None:
    x, w = np.ones((1, 1, 500, 500), np.float32), np.ones((1, 1, 31, 31), np.float32)
    asked = request_codec.single_to_proto(Tensor("float32", x.shape), Tensor("float32", w.shape), None, {})
    x[0, 0, 0, 0] = np.nan
    with OpenCall(channel, first(asked)) as call:
        until(lambda: metric(tight, MEMORY), "its admission")
        held = metric(tight, MEMORY)
        call.send(*chunks(data_of(w, x)))
        call.close()
        answer = call.answer()
    assert held >= peak_bytes(answer.plan)
