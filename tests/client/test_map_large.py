"""Frames that no message of a stream may hold, among others that it may, in both colours, on real servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.async_calls import asynchronously
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.client import Client, Conv, Pool
from convolver.core.errors import IntegerOverflow, UnknownLayer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    Array = NDArray[Any]
    Layers = Callable[[Any], Any]
    Mapped = Callable[..., list[Array]]

DOT = np.full((1, 1, 1), 2, np.float32)
SMALL, LARGE = 10, 900_000
"""Elements of a frame that a message of 2 MiB holds, and of one that it does not."""


@pytest.fixture(scope="module")
def narrow(serve: Callable[..., RunningServer]) -> RunningServer:
    """A server whose messages have 2 MiB."""
    return serve("--backend=reference", "--max-message=2MiB")


def by_sync(address: str, layers: Layers, frames: Iterable[Array]) -> list[Array]:
    with Client(address) as client:
        return list(layers(client).map(frames, in_flight=4))


def by_async(address: str, layers: Layers, frames: Iterable[Array]) -> list[Array]:
    async def calls(client: Any) -> list[Array]:  # noqa: ANN401 - of either colour
        return [output async for output in layers(client).map(frames, in_flight=4)]

    return asynchronously(address, calls)


colours = pytest.mark.parametrize("mapped", [by_sync, by_async])

LAYERS: dict[str, Layers] = {
    "a layer": lambda client: client.layer(DOT),
    "a stack": lambda client: client.stack([Conv(DOT), Pool("max", 1)]),
    "a stack with a layer": lambda client: client.stack([Pool("max", 1), client.layer(DOT)]),
}


def frames_in_one_buffer(sizes: Iterable[int]) -> Iterator[Array]:
    """Of ones, twos, threes..., each over the one before."""
    buffer = np.empty(LARGE, np.float32)
    for number, size in enumerate(sizes, 1):
        frame = buffer[:size].reshape(1, 1, size)
        frame.fill(number)
        yield frame


@colours
@pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("sizes", [[LARGE, SMALL, SMALL, LARGE, SMALL], [SMALL, LARGE, LARGE, SMALL, SMALL]])
def test_they_take_their_place(narrow: RunningServer, mapped: Mapped, layers: Layers, sizes: list[int]) -> None:
    outputs = mapped(narrow.address, layers, frames_in_one_buffer(sizes))
    for number, (size, output) in enumerate(zip(sizes, outputs, strict=True), 1):
        np.testing.assert_array_equal(output, np.full((1, 1, size), 2 * number, np.float32))
    until(lambda: metric(narrow, "convolver_in_flight") == 0, "the server to be idle")


@colours
def test_so_do_frames_whose_outputs_are_large(narrow: RunningServer, mapped: Mapped) -> None:
    ones = np.ones((1, 1, 1), np.float32)
    outputs = mapped(narrow.address, lambda client: client.layer(ones, padding=LARGE // 2), [ones, 2 * ones])
    assert [(output.size, output.sum()) for output in outputs] == [(LARGE + 1, 1), (LARGE + 1, 2)]


def test_torch_tensors_come_back_as_torch_tensors(narrow: RunningServer) -> None:
    torch = pytest.importorskip("torch", reason="torch is what is tested")
    [output] = by_sync(narrow.address, LAYERS["a layer"], [torch.ones(1, 1, LARGE)])
    assert torch.equal(output, torch.full((1, 1, LARGE), 2.0))


@colours
def test_an_error_is_raised_in_its_place(narrow: RunningServer, mapped: Mapped) -> None:
    frames = [np.full((1, 1, 4 * size), value, np.int8) for size, value in ((1, 5), (LARGE, 100), (1, 5))]
    with pytest.raises(IntegerOverflow, match="200") as caught:
        mapped(narrow.address, lambda client: client.layer(DOT.astype(np.int8)), frames)
    assert caught.value.__notes__ == ["frame 1"]


@colours
def test_what_the_caller_forbids_to_send_is_not_sent(narrow: RunningServer, mapped: Mapped) -> None:
    unknown = np.full((1, 1, 1), 77, np.float32)
    with pytest.raises(UnknownLayer):
        mapped(narrow.address, lambda client: client.layer(unknown, resend=False), [np.ones((1, 1, LARGE), np.float32)])
