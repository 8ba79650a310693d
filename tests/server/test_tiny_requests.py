"""Which requests are computed on the event loop, and that they are counted as all others."""

from __future__ import annotations

import asyncio
import math
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.contract import FLOAT32
from tests.server.test_scheduler import held_bytes

from convolver.core.errors import UnknownLayer
from convolver.server.answering import Accepted, Answering, Desk
from convolver.server.demand import Demand
from convolver.server.engine import Engine
from convolver.server.layers import LayerStore
from convolver.server.requests import FEW_LAYERS, Requests
from convolver.server.scheduler import Scheduler
from convolver.server.settings import Settings
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 32


def convolution(size: int = SIZE, activation: str = "NONE", *, keep: bool = False, gradients: bool = False) -> bytes:
    weight, x = (tensor_pb2.Tensor(dtype=FLOAT32, shape=shape) for shape in ((16, 3, 3, 3), (1, 3, size, size)))
    definition = pb.LayerDefinition(weight=weight, activation=f"ACTIVATION_{activation}")  # type: ignore[arg-type]  # protobuf takes names too
    message = pb.Convolution(layers=[pb.Layer(definition=definition, keep=keep)], input=x)
    message.execution.backend = "reference"
    if gradients:
        grad = tensor_pb2.Tensor(dtype=FLOAT32, shape=(1, 16, size - 2, size - 2))
        message.gradients.CopyFrom(pb.Gradients(grad_output=grad, input=True))
    return message.SerializeToString()


class Caller:
    """One who has all the time."""

    name, deadline, keeps_message = "somebody", math.inf, True

    def when_gone(self, release: Callable[[], None]) -> None:
        """At once."""
        release()


def requests(scheduler: Any = None) -> Requests:  # noqa: ANN401 - a Scheduler, where something runs
    return Requests(Desk(Engine.of(Settings(), LayerStore(10**6)), 2**26), scheduler)


@pytest.mark.parametrize(
    ("raw", "tiny"),
    [
        (convolution(), True),
        (convolution(size=512), False),
        (convolution(activation="GELU"), False),
        (convolution(keep=True), False),
        (convolution(gradients=True), False),
    ],
    ids=["small", "large", "a slow activation", "to be hashed", "gradients"],
)
def test_what_the_cost_model_puts_at_little_is_tiny(raw: bytes, tiny: bool) -> None:  # noqa: FBT001 - what is expected
    assert requests()._accepted(raw).is_tiny is tiny  # noqa: SLF001 - what a header decides


@pytest.mark.parametrize("size", [SIZE, 512])
def test_tiny_work_runs_on_the_loop_and_other_work_in_a_thread(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[threading.Thread] = []

    async def whole() -> None:
        scheduler = Scheduler(1, 2**30)
        made = requests(scheduler)

        def answer(*_: object) -> bytes:
            ran.append(threading.current_thread())
            return b""

        monkeypatch.setattr(Answering, "__call__", answer)
        assert await made.answer(convolution(size), [], 0.0, lambda _: b"", Caller()) == b""
        assert not scheduler.busy
        scheduler.close()

    asyncio.run(whole())
    assert (ran == [threading.main_thread()]) is (size == SIZE)


@pytest.mark.parametrize(("keeps_message", "held"), [(True, 26), (False, 6)])
def test_until_an_answer_is_taken_it_is_held_and_a_message_that_is_kept(
    keeps_message: bool,  # noqa: FBT001 - what is given
    held: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    releases: list[Callable[[], None]] = []

    class Slow(Caller):
        def when_gone(self, release: Callable[[], None]) -> None:
            releases.append(release)

    async def whole() -> None:
        scheduler, caller = Scheduler(1, 2**30), Slow()
        caller.keeps_message = keeps_message
        monkeypatch.setattr(Answering, "__call__", lambda _: b"answer")
        entries = [memoryview(bytes(20))]
        await requests(scheduler).answer(convolution(512), entries, 0.0, lambda _: b"", caller)
        assert held_bytes() == held
        releases.pop()()
        assert held_bytes() == 0
        scheduler.close()

    asyncio.run(whole())


def test_tiny_work_waits_behind_what_waits_for_room() -> None:
    async def whole() -> None:
        scheduler = Scheduler(1, 100)
        assert scheduler.has_room(100)
        assert not scheduler.has_room(101)
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            release.wait(60)

        first = asyncio.create_task(scheduler.run(Demand(60), hold))
        await asyncio.to_thread(held.wait, 60)
        assert (scheduler.has_room(40), scheduler.has_room(41)) == (True, False)
        release.set()
        await first
        scheduler.close()

    asyncio.run(whole())


def test_what_raises_on_the_loop_gives_its_bytes_back() -> None:
    def fail() -> None:
        raise UnknownLayer("gone")

    scheduler = Scheduler(1, 100)
    with pytest.raises(UnknownLayer):
        scheduler.run_here(100, fail)
    assert scheduler.has_room(100)
    assert not scheduler.busy


@pytest.mark.parametrize("count", [FEW_LAYERS, FEW_LAYERS + 1])
def test_a_request_of_many_layers_is_planned_in_a_thread(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    message = pb.Convolution.FromString(convolution(size=512))
    pooling = pb.Pooling(kind=pb.POOLING_KIND_MAX, kernel=[1, 1])
    message.layers.extend([pb.Layer(pooling=pooling)] * (count - 1))
    planned: list[threading.Thread] = []

    async def whole() -> None:
        scheduler = Scheduler(1, 2**30)
        made = requests(scheduler)
        accept, answer = made._accepted, b"answered"  # noqa: SLF001 - where it runs is what is asked

        def accepted(raw: bytes) -> Accepted:
            planned.append(threading.current_thread())
            return accept(raw)

        monkeypatch.setattr(made, "_accepted", accepted)
        monkeypatch.setattr(Answering, "__call__", lambda _: answer)
        for _ in range(2):  # the second time it is remembered
            assert await made.answer(message.SerializeToString(), [], 0.0, lambda _: b"", Caller()) == answer
        scheduler.close()

    asyncio.run(whole())
    assert [thread is threading.main_thread() for thread in planned] == [count <= FEW_LAYERS]
