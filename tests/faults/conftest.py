"""Servers to be hurt, and the table of how they took it."""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.faults import endurance
from tests.faults.endurance import TIMES, Row
from tests.faults.world import World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.world import Fault


@pytest.fixture(scope="session")
def rows() -> Iterator[list[Row]]:
    """A row for each fault. They are written down into the folder that FAULTS_RESULTS names."""
    rows: list[Row] = []
    yield rows
    folder = os.environ.get("FAULTS_RESULTS")
    if folder:
        endurance.write_down(rows, Path(folder))


@pytest.fixture(scope="session")
def worlds() -> Iterator[Callable[..., World]]:
    """A world for each set of flags."""
    with ExitStack() as stack:
        yield cache(lambda *flags: stack.enter_context(World(*flags)))


@pytest.fixture
def endures(worlds: Callable[..., World], rows: list[Row]) -> Callable[[Fault], None]:
    """Does a fault to the server of its flags, and writes down how it went."""

    def endures(fault: Fault) -> None:
        row = Row(fault.name, TIMES, 0.0)
        rows.append(row)
        endurance.noted(row, lambda: endurance.endure(worlds(*fault.flags), fault, row))

    return endures
