"""Which requests of a stream are sent again, from the answers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.contract import IMAGE, KERNEL

from convolver.client import Conv, Pool
from convolver.client._composition import Composition, HeldWeights
from convolver.client._pipeline import Pipeline, Route
from convolver.client._resending import LARGEST_WHOLE, Again
from convolver.client._retries import Budget
from convolver.core.errors import Overloaded, UnknownLayer
from convolver.core.status import to_status
from convolver.core.wire import split
from convolver.v1 import convolution_service_pb2 as pb
from convolver.v1 import status_pb2

if TYPE_CHECKING:
    from convolver.core.errors import ConvolverError

HELD = HeldWeights(KERNEL, None, {})


def pipeline_of(*items: Conv | Pool | HeldWeights, resend: bool = True) -> Pipeline:
    return Pipeline(Composition(items, {}), Route("here", 60.0, Budget()), in_flight=4, resend=resend)


def sent(pipeline: Pipeline, frame: Any) -> bytes:  # noqa: ANN401 - an array of any library
    """The frame's message."""
    message = pipeline.send(frame)
    assert isinstance(message, bytes)
    return message


def failed(number: int, error: ConvolverError) -> bytes:
    status = status_pb2.Status.FromString(to_status(error).SerializeToString())
    return pb.ConvolveStreamResponse(id=number, status=status).SerializeToString()


def unknown(number: int, digest: str = HELD.digest) -> bytes:
    return failed(number, UnknownLayer("no such layer", digest))


def parted(message: bytes) -> tuple[pb.ConvolveStreamRequest, list[memoryview]]:
    head, entries = split(message)
    return pb.ConvolveStreamRequest.FromString(head), entries


def kinds(message: bytes) -> list[str | None]:
    return [layer.WhichOneof("kind") for layer in parted(message)[0].convolution.layers]


def test_what_is_whole_and_still_unknown_is_an_error() -> None:
    pipeline = pipeline_of(HELD)
    assert kinds(sent(pipeline, IMAGE)) == ["digest"]
    [(put, message)] = pipeline.receive(unknown(0))
    assert (put, kinds(message)) == (None, ["definition"])
    assert parted(message)[0].convolution.layers[0].keep
    assert pipeline.receive(unknown(0)) == []
    with pytest.raises(UnknownLayer):
        pipeline.take()


@pytest.mark.parametrize("items", [[Conv(KERNEL)], [HELD]])
def test_what_may_not_be_sent_again_is_an_error(items: list[Conv | HeldWeights]) -> None:
    pipeline = pipeline_of(*items, resend=not isinstance(items[0], HeldWeights))
    pipeline.send(IMAGE)
    assert pipeline.receive(unknown(0)) == []
    with pytest.raises(UnknownLayer, match="no such layer"):
        pipeline.take()


def test_a_whole_request_is_made_of_what_was_sent() -> None:
    frame, kernel, bias = IMAGE.copy(), np.ones((1, 1, 1, 1), np.float32), np.ones(1, np.float32)
    pipeline = pipeline_of(HELD, Conv(kernel, bias), Pool("max", 1), HELD)
    pipeline.send(frame)
    for array in (frame, kernel, bias):
        array[:] = -1  # the caller's to change
    [(_, message)] = pipeline.receive(unknown(0))
    found, entries = parted(message)
    assert kinds(message) == ["definition", "definition", "pooling", "definition"]
    assert [layer.keep for layer in found.convolution.layers] == [True, False, False, True]
    arrays = [np.frombuffer(entry, np.float32) for entry in entries]
    expected: list[Any] = [KERNEL, [1], [1], KERNEL, IMAGE]
    for array, one in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, np.ravel(one))


def answer_of(number: int) -> bytes:
    """An error of another kind: an answer that is none of UnknownLayer."""
    return pb.ConvolveStreamResponse(id=number, status=status_pb2.Status(code=3, message="no")).SerializeToString()


def test_one_brings_the_layer_and_the_others_wait_for_it() -> None:
    pipeline = pipeline_of(HELD)
    pipeline.send(IMAGE)
    assert not pipeline.has_room
    pipeline.receive(answer_of(0))
    messages = {number: sent(pipeline, number * IMAGE) for number in (1, 2, 3)}
    [(_, whole)] = pipeline.receive(unknown(2))
    assert kinds(whole) == ["definition"]
    assert not pipeline.has_room
    assert pipeline.receive(unknown(1)) == []
    assert pipeline.receive(unknown(3)) == []
    assert pipeline.receive(answer_of(2)) == [Again(None, messages[1]), Again(None, messages[3])]
    for number in (1, 3):  # forgotten again at once: each brings it itself
        [(_, whole)] = pipeline.receive(unknown(number))
        assert kinds(whole) == ["definition"]


def test_another_stream_begins_with_what_has_no_answer_but_not_with_what_is_to_come_later() -> None:
    pipeline = pipeline_of(Conv(KERNEL))
    messages = [sent(pipeline, number * IMAGE) for number in range(3)]
    pipeline.receive(answer_of(1))
    assert pipeline.unanswered() == [messages[0], messages[2]]
    pipeline.receive(failed(0, Overloaded("come again", 0.0)))
    assert pipeline.unanswered() == [messages[2]]
    assert pipeline.later() == [messages[0]]
    assert pipeline.unanswered() == [messages[0], messages[2]]


def test_on_another_stream_nobody_leads_or_waits() -> None:
    pipeline = pipeline_of(HELD)
    pipeline.send(IMAGE)
    pipeline.receive(answer_of(0))
    messages = [sent(pipeline, number * IMAGE) for number in (1, 2)]
    pipeline.receive(unknown(2))
    assert pipeline.receive(unknown(1)) == []
    assert pipeline.unanswered() == messages
    assert pipeline.receive(answer_of(2)) == []
    [(_, whole)] = pipeline.receive(unknown(1))
    assert kinds(whole) == ["definition"]


def test_a_large_layer_goes_ahead_and_is_sent_whole_only_where_it_got_lost() -> None:
    large = HeldWeights(np.zeros((LARGEST_WHOLE >> 10, 1 << 10, 1), np.int8), None, {})
    pipeline = pipeline_of(large)
    message = sent(pipeline, np.ones((1, 1 << 10, 1), np.int8))
    assert pipeline.receive(unknown(0, large.digest)) == [Again(large, message)]
    [(put, whole)] = pipeline.receive(unknown(0, large.digest))
    assert (put, kinds(whole)) == (None, ["definition"])
    assert pipeline.receive(unknown(0, large.digest)) == []
    with pytest.raises(UnknownLayer):
        pipeline.take()


def test_of_a_frame_its_likeness_is_kept() -> None:
    torch = pytest.importorskip("torch", reason="torch is what is tested")
    pipeline = pipeline_of(HELD)
    frame = torch.from_numpy(IMAGE.copy())
    pipeline.send(frame)
    [kept] = pipeline._frames  # noqa: SLF001 - memory that nobody sees
    assert (kept.likeness.numel(), kept.likeness.device) == (0, frame.device)
