"""Tensors of more than 2 GiB and 2^31 elements: with CONVOLVER_HUGE=1, on a machine with 8 GiB to spare."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest

from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

LONG = 46_400
FLAGS = [f"--{name}={2**36}" for name in ("max-output-elements", "memory-budget")]


@pytest.mark.skipif(not os.environ.get("CONVOLVER_HUGE"), reason="it takes 8 GiB and a minute: CONVOLVER_HUGE=1")
def test_they_come_and_go_whole(serve: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONVOLVER_HUGE")  # which no server knows, and so refuses
    image, out = np.zeros((1, 1, LONG, LONG), np.int8), np.empty((1, 1, LONG, LONG), np.int8)
    places = (0, 2**31 - 1, 2**31, image.size - 1)
    image.reshape(-1)[list(places)] = (1, 2, 3, 4)
    running = serve(*FLAGS)
    with Client(running.address, timeout=None) as client:
        assert client.conv2d(image, np.ones((1, 1, 1, 1), np.int8), out=out, overflow="wrap") is out
    flat = out.reshape(-1)
    assert [int(flat[place]) for place in places] == [1, 2, 3, 4]
    assert np.count_nonzero(flat) == 4
    assert running.stop() == 0
