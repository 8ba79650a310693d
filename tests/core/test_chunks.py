"""Bytes cut into chunks, and memory that is filled by them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.core.operations import Array

from convolver.core.chunks import CHUNK, Filling, chunks

SIZES = st.lists(st.integers(0, 40), max_size=6)


def views_of(sizes: list[int]) -> list[memoryview]:
    """Views of so many bytes, no two of which are alike before the 256th."""
    data = bytes(i % 256 for i in range(sum(sizes)))
    ends = np.cumsum(sizes, dtype=int).tolist()
    return [memoryview(data)[end - size : end] for size, end in zip(sizes, ends, strict=True)]


@given(SIZES, st.integers(1, 50))
def test_all_chunks_but_the_last_are_full_and_hold_all_bytes_in_order(sizes: list[int], size: int) -> None:
    views = views_of(sizes)
    cut = list(chunks(views, size))
    assert b"".join(part for chunk in cut for part in chunk) == b"".join(views)
    lengths = [sum(part.nbytes for part in chunk) for chunk in cut]
    assert lengths[:-1] == [size] * (len(lengths) - 1)
    assert all(0 < length <= size for length in lengths)
    assert all(part.nbytes for chunk in cut for part in chunk)


def test_a_chunk_has_a_part_of_each_view_that_it_holds_and_none_is_copied() -> None:
    array = np.arange(CHUNK + 3, dtype=np.uint8)
    cut = list(chunks([array[:5].data, array[5:].data]))
    assert [[part.nbytes for part in chunk] for chunk in cut] == [[5, CHUNK - 5], [3]]
    assert all(np.shares_memory(array, np.asarray(part)) for chunk in cut for part in chunk)


@given(SIZES, SIZES)
def test_buffers_are_filled_one_after_the_other_however_the_bytes_come(rooms: list[int], cuts: list[int]) -> None:
    buffers = [np.zeros(room, np.uint8) for room in rooms]
    filling, data = Filling(buffers), b"".join(views_of(rooms))
    assert (filling.bytes, filling.come) == (len(data), 0)
    for part in np.split(np.frombuffer(data, np.uint8), np.minimum(np.cumsum(cuts, dtype=int), len(data))):
        come = filling.come
        filling.take(part.data)
        assert filling.come == come + part.size
    assert b"".join(buffer.tobytes() for buffer in buffers) == data
    assert filling.come == filling.bytes


@pytest.mark.parametrize("dtype", [np.float64, np.bool_, np.complex64, ml_dtypes.bfloat16])
def test_a_buffer_may_be_of_any_dtype_and_shape(dtype: type) -> None:
    wanted: Array = np.arange(6).reshape(2, 3).astype(dtype)
    buffer: Array = np.zeros_like(wanted)
    scalar: Array = np.zeros((), dtype)
    filling = Filling([np.zeros((0, 3), dtype), buffer, scalar])
    filling.take(memoryview(wanted.tobytes() + wanted[1, 2].tobytes()))
    np.testing.assert_array_equal(buffer, wanted)
    assert scalar == wanted[1, 2]


def test_of_more_than_there_is_room_for_nothing_is_taken() -> None:
    buffer = np.zeros(4, np.uint8)
    filling = Filling([buffer])
    filling.take(memoryview(b"\1"))
    with pytest.raises(ValueError, match="2 bytes or more beyond"):
        filling.take(memoryview(b"\2\3\4\5\6"))
    assert filling.come == 1
    assert buffer.tolist() == [1, 0, 0, 0]
    filling.take(memoryview(b"\2\3\4"))
    assert buffer.tolist() == [1, 2, 3, 4]
