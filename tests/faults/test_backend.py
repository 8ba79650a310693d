"""Back ends that raise, hang, give NaN or run out of memory."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import pytest
from tests.faults import faulty_server
from tests.faults.calls import PATIENCE
from tests.faults.faulty_server import CHANNELS, HANG_SECONDS, MISBEHAVIOURS, NAN
from tests.faults.world import PLAIN, TORCH, Fault, World

from convolver.client import Client, DeadlineExceeded, _retries
from convolver.core.errors import BackendFailure, Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    Array = NDArray[Any]

TINY, ORDINARY, LARGE = (1, CHANNELS, 4, 4), (1, CHANNELS, 60, 60), (4, CHANNELS, 300, 300)
"""Computed in the event loop, in a thread, and in pieces while it comes."""

THREADS = 2
"""That the server computes with."""

WEIGHT = np.ones((2, CHANNELS, 3, 3), np.float32)
TORCHS_MEMORY = "runs out of torch's memory"
ERRORS = [name for name in MISBEHAVIOURS if name not in ("hangs", NAN, TORCHS_MEMORY)]


def asking_for(misbehaviour: str, shape: tuple[int, ...], item: int = 0) -> Array:
    """An input that is answered so, from this item of the batch on."""
    image = np.zeros(shape, np.float32)
    image[item:] = faulty_server.value_of(misbehaviour)
    return image


def convolved(client: Client, image: Array, timeout: float = PATIENCE) -> Array:
    output: Array = client.convolve(image, WEIGHT, timeout=timeout)
    return output


def tried_once() -> AbstractContextManager[object]:
    """The SDK would come again to a server that has no memory now, seconds later."""
    return patch.object(_retries, "TRIES", 1)


def fails(world: World, misbehaviour: str, shape: tuple[int, ...], item: int = 0) -> None:
    with tried_once(), pytest.raises((BackendFailure, Overloaded)):
        convolved(world.client, asking_for(misbehaviour, shape, item))


def fails_in_a_stream(world: World, misbehaviour: str) -> None:
    """The frames before it are answered."""
    good = np.zeros(ORDINARY, np.float32)
    layer = world.client.layer(WEIGHT, timeout=PATIENCE)
    with tried_once():
        frames = layer.map([good, asking_for(misbehaviour, ORDINARY), good], in_flight=3)
        assert not next(frames).any()
        with pytest.raises((BackendFailure, Overloaded)):
            next(frames)


def gives_nan(world: World, shape: tuple[int, ...]) -> None:
    assert np.isnan(convolved(world.client, asking_for(NAN, shape))).any()


def outlasts_the_deadline(world: World, shape: tuple[int, ...]) -> None:
    with pytest.raises(DeadlineExceeded):
        convolved(world.client, asking_for("hangs", shape), timeout=HANG_SECONDS / 4)


def keeps_others_waiting(world: World) -> None:
    """Every thread hangs: the deadline of a call that waits for one passes, another gets its answer."""
    hanging = asking_for("hangs", ORDINARY)
    with ThreadPoolExecutor(THREADS) as threads:
        calls = [threads.submit(convolved, world.client, hanging) for _ in range(THREADS)]
        while world.in_flight < THREADS and not all(call.done() for call in calls):
            time.sleep(0.01)
        with suppress(DeadlineExceeded):  # which does not come where this machine was busy until they were done
            convolved(world.client, np.zeros(ORDINARY, np.float32), timeout=HANG_SECONDS / 8)
        assert not convolved(world.client, np.zeros(ORDINARY, np.float32)).any()
        assert all(call.result(PATIENCE).size for call in calls)


def of_each(do: Callable[..., None], what: str, **shapes: tuple[int, ...]) -> list[Fault]:
    return [Fault(f"back end {what}, {name}", partial(do, shape=shape)) for name, shape in shapes.items()]


SHAPES = {"inline": TINY, "unary": ORDINARY, "chunked": LARGE}
FAULTS = [
    *(fault for name in ERRORS for fault in of_each(partial(fails, misbehaviour=name), name, **SHAPES)),
    *(Fault(f"back end {name}, stream", partial(fails_in_a_stream, misbehaviour=name)) for name in ERRORS),
    *(
        Fault(f"back end {name}, in the midst of the answer", partial(fails, misbehaviour=name, shape=LARGE, item=2))
        for name in ("raises RuntimeError", "raises MemoryError")
    ),
    Fault("torch runs out of memory, unary", partial(fails, misbehaviour=TORCHS_MEMORY, shape=ORDINARY), TORCH),
    Fault("torch runs out of memory, chunked", partial(fails, misbehaviour=TORCHS_MEMORY, shape=LARGE), TORCH),
    *of_each(gives_nan, NAN, **SHAPES),
    *of_each(outlasts_the_deadline, "hangs past the deadline", unary=ORDINARY, chunked=LARGE),
    Fault("back end hangs on every thread", keeps_others_waiting, PLAIN),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_server_survives(fault: Fault, endures: Callable[[Fault], None]) -> None:
    if fault.flags == TORCH or "torch" in fault.name:
        pytest.importorskip("torch", reason="torch is not installed: its memory cannot run out")
    endures(fault)


def test_what_a_caller_still_sends_when_his_call_fails_is_not_kept(worlds: Callable[..., World]) -> None:
    """A megabyte of each call was, since its reader was cancelled."""
    fault = partial(fails, misbehaviour=ERRORS[0], shape=LARGE)
    with_buffers, many = 20, 80
    world = worlds(*PLAIN)
    for _ in range(with_buffers):
        fault(world)
    before = world.vitals()
    for _ in range(many):
        fault(world)
    world.settled(before)
