"""What a pool of shared memory finds, keeps and lets go of, and what is offered of it."""

from __future__ import annotations

import numpy as np
import pytest

from convolver.client import _regions
from convolver.client._regions import Memory, Place, Pool
from convolver.client._shared_memory import Prospects
from convolver.core.errors import LimitExceeded

SIZE = 1 << 20


@pytest.fixture
def forgotten() -> list[int]:
    """The addresses of what goes back to the system."""
    return []


@pytest.fixture
def pool(forgotten: list[int]) -> Pool:
    def forget(memory: Memory) -> None:
        forgotten.append(memory.address)

    return Pool(forget)


def lent(pool: Pool, *sizes: int) -> list[Place]:
    places = pool.places(sizes)
    assert places is not None
    return places


def test_memory_of_another_is_not_found_be_it_above_or_below() -> None:
    one, other = (Pool(lambda _: None) for _ in range(2))
    [mine], [its] = lent(one, SIZE), lent(other, SIZE)
    assert one.find(its.data.data) is None
    assert other.find(mine.data.data) is None
    found = one.find(mine.data[5:9].data)
    assert found is not None
    assert (found.memory, found.offset, found.bytes) == (mine.memory, mine.offset + 5, 4)
    assert one.find(np.zeros(SIZE, np.uint8).data) is None


def test_memory_is_kept_for_the_next_and_let_go_of_once_the_client_is_closed(pool: Pool, forgotten: list[int]) -> None:
    [place] = lent(pool, SIZE)
    address = place.memory.address
    del place
    [place] = lent(pool, SIZE)
    assert place.memory.address == address
    pool.close()
    assert not forgotten
    del place
    assert forgotten == [address]


def test_no_more_than_so_many_bytes_are_kept(forgotten: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_regions, "KEPT", 5 * SIZE)
    pool = Pool(lambda memory: forgotten.append(memory.address))
    [first], [second] = lent(pool, SIZE), lent(pool, SIZE)  # of two MiB each: one that is used begins after a page
    addresses = [first.memory.address, second.memory.address]
    del first
    del second
    assert not forgotten
    [third], [fourth], [fifth] = lent(pool, SIZE), lent(pool, SIZE), lent(pool, SIZE)
    del third
    del fourth
    del fifth
    assert len(forgotten) == 1
    assert forgotten[0] in addresses


def test_what_was_too_large_is_not_offered_again_and_what_is_smaller_is(pool: Pool) -> None:
    prospects, (small, large) = Prospects(), [lent(pool, size)[0].memory for size in (SIZE, 4 * SIZE)]
    assert prospects.are_good([small, large])
    prospects.refused(LimitExceeded("no", "bytes of shared memory", small.bytes, large.bytes, "--shared-memory-budget"))
    assert not prospects.are_good([small, large])
    assert prospects.are_good([small])
