"""join: what it writes, checked by protobuf and by split."""

from __future__ import annotations

import mmap
import re
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from tests.core.wire_message import Message, entry, offset_in

from convolver.core.errors import LimitExceeded
from convolver.core.wire import join, split

HEADER = entry(1, b"header")
MIB = 2**20


def test_protobuf_parses_what_join_makes() -> None:
    header = Message(header=b"header", number=-1, inner=Message(data=[b"nested"]), text="é")
    message = Message.FromString(join(header.SerializeToString(), [b"weight", b"", b"input"]))
    assert list(message.data) == [b"weight", b"", b"input"]
    assert not message.filler.strip(b"\0")
    message.ClearField("data")
    message.ClearField("filler")
    assert message == header


def test_split_undoes_join() -> None:
    header, entries = split(join(HEADER, [b"weight", b"input"], filler=None))
    assert header == HEADER
    assert [bytes(view) for view in entries] == [b"weight", b"input"]


@pytest.mark.parametrize("alignment", [1, 2, 4, 8, 16, 24, 32, 64])
def test_every_entry_starts_at_a_multiple_of_the_alignment(alignment: int) -> None:
    sizes = [*range(70), 127, 128, 16383, 16384]
    message = join(HEADER, [bytes(size) for size in sizes], alignment=alignment)
    assert {offset_in(message, view) % alignment for view in split(message)[1]} == {0}
    assert [len(view) for view in Message.FromString(message).data] == sizes


def test_what_follows_an_entry_of_wide_items_is_aligned() -> None:
    message = join(HEADER, [np.zeros(3), np.zeros((2, 5), np.int16), b"input"])
    assert [offset_in(message, view) % 16 for view in split(message)[1]] == [0, 0, 0]


@pytest.mark.parametrize("length", range(40))
def test_the_header_may_end_anywhere(length: int) -> None:
    message = join(bytes(length), [b"input"])
    start = message.index(b"input")
    assert start % 16 == 0
    assert start - length - 2 <= 17


def test_no_filler_stands_where_none_is_needed() -> None:
    header = entry(1, bytes(12))
    assert join(header, [b"input"]) == header + entry(15, b"input")


def test_without_filler_the_bytes_are_those_that_protobuf_writes() -> None:
    message = Message(header=b"header", contents=[b"a" * 200, b"", b"b"])
    header = Message(header=b"header").SerializeToString()
    assert join(header, message.contents, field=7, filler=None) == message.SerializeToString()


def test_field_numbers_of_two_bytes_are_joined_and_aligned() -> None:
    message = join(HEADER, [b"a" * 20, b"bbb"], field=2047, filler=2046)
    assert [bytes(view) for view in split(message, field=2047)[1]] == [b"a" * 20, b"bbb"]
    assert (message.index(b"a" * 20) % 16, message.index(b"bbb") % 16) == (0, 0)


@pytest.mark.parametrize("alignment", [0, -16, 65])
def test_an_alignment_out_of_range_is_refused(alignment: int) -> None:
    with pytest.raises(ValueError, match=f"alignment is {alignment}, but 1 to 64"):
        join(HEADER, [b"input"], alignment=alignment)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float64).reshape(2, 3),
        np.array(3.5, np.float32),
        np.zeros((0, 3), np.int16),
        np.arange(4).astype(np.complex64),
        np.array([1.5, -2.0], ml_dtypes.bfloat16).view(np.uint8),
        np.arange(3)[::2].copy(),
    ],
    ids=["2-D", "0-D", "empty", "complex", "bfloat16 as bytes", "copy of every second"],
)
def test_arrays_are_entries(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    assert list(Message.FromString(join(HEADER, [array])).data) == [array.tobytes()]


@pytest.mark.parametrize(
    "array", [np.arange(6)[::2], np.zeros((2, 3)).T, np.zeros((4, 4))[:, 1:3]], ids=["step", "transposed", "slice"]
)
def test_an_array_that_is_not_contiguous_is_refused(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    with pytest.raises(BufferError, match=re.escape(f"entry 1 of shape {array.shape} and strides {array.strides}")):
        join(HEADER, [b"weight", array])


def test_joining_takes_the_memory_of_the_message_and_no_more() -> None:
    entries = [bytes(MIB), bytes(7 * MIB)]
    tracemalloc.start()
    message = join(HEADER, entries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(message) + MIB // 16  # whatever else runs in this process allocates too


def test_a_message_beyond_two_gibibytes_is_not_made() -> None:
    gibibyte = mmap.mmap(-1, 2**30)
    with pytest.raises(LimitExceeded, match="bytes or more, at most 2147483647"):
        join(HEADER, [gibibyte, gibibyte])
