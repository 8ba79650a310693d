"""split: what it takes, what it costs and what it refuses, beside protobuf. join has a file of its own."""

from __future__ import annotations

import mmap
import re
import tracemalloc

import pytest
from tests.core.wire_message import (
    END_GROUP,
    FIXED32,
    FIXED64,
    LENGTH,
    START_GROUP,
    VARINT,
    entry,
    group,
    parses,
    tag,
    varint,
)

from convolver.core.errors import InvalidConvolution, LimitExceeded
from convolver.core.wire import join, split

HEADER = entry(1, b"header")
MIB = 2**20


def split_bytes(message: bytes | memoryview, field: int = 15) -> tuple[bytes, list[bytes]]:
    header, entries = split(message, field)
    return header, [bytes(view) for view in entries]


# what it takes


def test_split_takes_the_entries_of_the_field_out_of_the_message() -> None:
    assert split_bytes(HEADER + entry(15, b"weight") + entry(15, b"input")) == (HEADER, [b"weight", b"input"])


def test_an_empty_message_has_an_empty_header_and_no_entries() -> None:
    assert split(b"") == (b"", [])


def test_an_empty_entry_keeps_its_place() -> None:
    assert split_bytes(entry(15, b"") + entry(15, b"input") + entry(15, b"")) == (b"", [b"", b"input", b""])


def test_entries_may_stand_anywhere_and_the_header_keeps_its_order() -> None:
    message = entry(15, b"a") + tag(2, VARINT) + b"\x07" + entry(15, b"b") + HEADER + entry(15, b"c") + entry(14, b"\0")
    assert split_bytes(message) == (tag(2, VARINT) + b"\x07" + HEADER + entry(14, b"\0"), [b"a", b"b", b"c"])


def test_another_field_can_be_split_off() -> None:
    assert split_bytes(HEADER + entry(7, b"raw") + entry(15, b"data"), field=7) == (
        HEADER + entry(15, b"data"),
        [b"raw"],
    )


def test_a_field_number_of_two_bytes_can_be_split_off() -> None:
    assert split_bytes(HEADER + entry(2047, b"raw"), field=2047) == (HEADER, [b"raw"])


@pytest.mark.parametrize(
    "unknown",
    [
        pytest.param(tag(100, VARINT) + b"\xff" * 9 + b"\x01", id="varint"),
        pytest.param(tag(100, FIXED64) + bytes(8), id="fixed64"),
        pytest.param(entry(100, b"unknown"), id="length-delimited"),
        pytest.param(group(100, entry(15, b"not at the top level") + group(101, tag(2, VARINT) + b"\0")), id="group"),
        pytest.param(tag(100, FIXED32) + bytes(4), id="fixed32"),
        pytest.param(tag(2**29 - 1, VARINT) + b"\0", id="largest field number"),
        pytest.param(tag(15, VARINT) + b"\0", id="the field as varint"),
        pytest.param(tag(15, FIXED64) + bytes(8), id="the field as fixed64"),
        pytest.param(group(15, entry(15, b"")), id="the field as group"),
        pytest.param(tag(15, FIXED32) + bytes(4), id="the field as fixed32"),
    ],
)
def test_unknown_fields_stay_in_the_header(unknown: bytes) -> None:
    message = entry(15, b"a") + unknown + entry(15, b"b")
    assert parses(message)
    assert split_bytes(message) == (unknown, [b"a", b"b"])


def test_data_inside_a_nested_message_stays_there() -> None:
    nested = entry(3, entry(15, b"nested"))
    assert split_bytes(nested + entry(15, b"top")) == (nested, [b"top"])


@pytest.mark.parametrize("octets", range(1, 6))
def test_an_overlong_tag_is_read(octets: int) -> None:
    message = varint(15 << 3 | LENGTH, octets) + b"\x03abc"
    assert parses(message)
    assert split_bytes(message) == (b"", [b"abc"])


@pytest.mark.parametrize("octets", range(1, 11))
def test_an_overlong_length_is_read(octets: int) -> None:
    assert split_bytes(tag(15, LENGTH) + varint(3, octets) + b"abc") == (b"", [b"abc"])


def test_bits_of_a_length_beyond_the_64th_are_dropped() -> None:
    assert split_bytes(tag(15, LENGTH) + b"\x83" + b"\x80" * 8 + b"\x7eabc") == (b"", [b"abc"])


def test_groups_may_nest_a_hundred_deep() -> None:
    message = tag(9, START_GROUP) * 100 + tag(9, END_GROUP) * 100
    assert parses(message)
    assert split(message) == (message, [])


# its memory


def test_entries_are_views_into_the_message() -> None:
    message = HEADER + entry(15, b"weight")
    (view,) = split(message)[1]
    assert view.obj is message
    assert (view.readonly, view.format, view.contiguous) == (True, "B", True)


def test_a_view_that_starts_at_an_odd_byte_is_split() -> None:
    assert split_bytes(memoryview(b"?" + HEADER + entry(15, b"input"))[1:]) == (HEADER, [b"input"])


def test_a_view_of_wider_items_is_split_as_bytes() -> None:
    message = entry(15, b"123456")
    assert split_bytes(memoryview(message).cast("I")) == (b"", [b"123456"])


def test_a_view_with_gaps_is_refused() -> None:
    with pytest.raises(TypeError, match="C-contiguous"):
        split(memoryview(HEADER)[::2])


def test_splitting_sixteen_mebibytes_takes_no_memory_to_speak_of() -> None:
    message = join(HEADER, [bytes(16 * MIB)])
    tracemalloc.start()
    entries = split(message)[1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [len(view) for view in entries] == [16 * MIB]
    assert peak < MIB // 16  # whatever else runs in this process allocates too


# what it refuses, as protobuf does

MALFORMED = {
    "a tag that does not end": (HEADER + b"\xfa", "the varint at byte 8 does not end"),
    "a tag of six bytes": (
        HEADER + varint(15 << 3 | LENGTH, 6) + b"\0",
        "the varint at byte 8 does not end, within 5 bytes",
    ),
    "a tag of more than 32 bits": (
        HEADER + varint(2**32 | 15 << 3 | LENGTH) + b"\0",
        "the tag at byte 8 is 4294967418",
    ),
    "field number 0": (HEADER + tag(0, VARINT) + b"\0", "the tag at byte 8 names field 0"),
    "field number 0, length-delimited": (HEADER + tag(0, LENGTH) + b"\0", "the tag at byte 8 names field 0"),
    "field number 0, group": (HEADER + group(0), "the tag at byte 8 names field 0"),
    "wire type 6": (HEADER + tag(3, 6) + b"\0", "field 3 at byte 8 has wire type 6"),
    "wire type 7": (HEADER + tag(15, 7) + b"\0", "field 15 at byte 8 has wire type 7"),
    "wire type 6 in a group": (HEADER + group(9, tag(3, 6)), "field 3 at byte 9 has wire type 6"),
    "no length": (HEADER + tag(15, LENGTH), "the varint at byte 9 does not end"),
    "a length that does not end": (HEADER + tag(15, LENGTH) + b"\x80", "the varint at byte 9 does not end"),
    "a length of eleven bytes": (
        HEADER + tag(15, LENGTH) + varint(0, 11),
        "the varint at byte 9 does not end, within 10 bytes",
    ),
    "a length that lies": (
        HEADER + tag(15, LENGTH) + varint(900) + bytes(20),
        "field 15 at byte 8 announces 900 bytes, but 20 are left",
    ),
    "a length that lies by one": (entry(15, b"input")[:-1], "field 15 at byte 0 announces 5 bytes, but 4 are left"),
    "another field's length that lies": (
        entry(1, b"header")[:-1],
        "field 1 at byte 0 announces 6 bytes, but 5 are left",
    ),
    "a length of 2**64 - 1": (
        tag(15, LENGTH) + b"\xff" * 9 + b"\x01",
        "announces 18446744073709551615 bytes, but 0 are left",
    ),
    "a length that leaves its group": (
        group(9, tag(3, LENGTH) + b"\x02"),
        "field 3 at byte 1 announces 2 bytes, but 1 are left",
    ),
    "a varint that does not end": (tag(2, VARINT) + b"\x80" * 3, "the varint at byte 1 does not end"),
    "a varint of eleven bytes": (tag(2, VARINT) + varint(0, 11), "the varint at byte 1 does not end, within 10 bytes"),
    "a short fixed32": (tag(15, FIXED32) + bytes(3), "field 15 at byte 0 announces 4 bytes, but 3 are left"),
    "a short fixed64": (tag(15, FIXED64) + bytes(7), "field 15 at byte 0 announces 8 bytes, but 7 are left"),
    "a group that does not end": (HEADER + tag(9, START_GROUP) + HEADER, "group 9 at byte 8 does not end"),
    "a group that never began": (HEADER + tag(9, END_GROUP), "the end of group 9 at byte 8 does not match"),
    "a group with another's end": (
        tag(9, START_GROUP) + tag(10, END_GROUP),
        "the end of group 10 at byte 1 does not match",
    ),
    "crossed groups": (
        tag(9, START_GROUP) + tag(10, START_GROUP) + tag(9, END_GROUP) + tag(10, END_GROUP),
        "the end of group 9 at byte 2 does not match",
    ),
    "groups 101 deep": (
        tag(9, START_GROUP) * 101 + tag(9, END_GROUP) * 101,
        "group 9 at byte 100 is nested more than 100 deep",
    ),
}


@pytest.mark.parametrize(("message", "text"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_messages_are_refused_with_the_byte_and_the_rule(message: bytes, text: str) -> None:
    assert not parses(message)
    with pytest.raises(InvalidConvolution, match=re.escape(text)):
        split(message)


# what it refuses though protobuf would not


def test_as_many_entries_as_allowed_are_taken() -> None:
    assert len(split(entry(15, b"") * 8, max_entries=8)[1]) == 8


def test_more_entries_than_allowed_are_refused() -> None:
    with pytest.raises(LimitExceeded, match="9 entries of field 15 or more, at most 8 are read") as caught:
        split(entry(15, b"") * 1000, max_entries=8)
    assert (caught.value.limit, caught.value.value) == (8, 9)


def test_a_message_full_of_empty_entries_is_refused_before_memory_is_spent_on_them() -> None:
    message = entry(15, b"") * (4 * MIB)
    tracemalloc.start()
    with pytest.raises(LimitExceeded, match="4097 entries of field 15 or more, at most 4096 are read"):
        split(message)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MIB


def test_as_many_fields_as_allowed_are_read() -> None:
    message = (tag(2, VARINT) + b"\0") * 8
    assert split(message, max_fields=8) == (message, [])


@pytest.mark.parametrize(
    "flood", [(tag(2, VARINT) + b"\0") * 9, group(9, (tag(2, VARINT) + b"\0") * 7), group(9) * 4 + entry(15, b"")]
)
def test_more_fields_than_allowed_are_refused_inside_groups_too(flood: bytes) -> None:
    assert parses(flood)
    with pytest.raises(LimitExceeded, match="9 fields or more, at most 8 are read"):
        split(flood, max_fields=8)


def test_a_message_of_two_gibibytes_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="2147483648 bytes"):
        split(mmap.mmap(-1, 2**31))
