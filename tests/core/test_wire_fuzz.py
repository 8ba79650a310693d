"""split and join against protobuf itself, on bytes that hypothesis makes up.

The examples are the same on every run; WIRE_FUZZ_EXAMPLES=100000 looks for so many new ones instead.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from tests.core.wire_message import (
    END_GROUP,
    FIXED32,
    FIXED64,
    LENGTH,
    LONG_LENGTHS_PARSE,
    START_GROUP,
    VARINT,
    Message,
    offset_in,
    varint,
)

from convolver.core.errors import InvalidConvolution
from convolver.core.wire import join, split

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = os.environ.get("WIRE_FUZZ_EXAMPLES")
fuzz = settings(
    max_examples=int(EXAMPLES or 400),
    derandomize=EXAMPLES is None,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no finding
)

# Known, unknown, the one that is split off, the ends of the range and just beyond them.
NUMBERS = st.sampled_from([0, *range(1, 9), 14, 15, 15, 15, 16, 2047, 2048, 2**29 - 1, 2**29])
LIES = st.integers(-3, 3) | st.sampled_from([900, 2**31, 2**32, 2**63, 2**64 - 1])
SMALL = st.binary(max_size=20)


@st.composite
def varints(draw: st.DrawFn, value: int, longest: int) -> bytes:
    """`value`, one time in four overlong, up to one byte beyond `longest`."""
    octets = draw(st.integers(2, longest + 1)) if draw(st.integers(0, 3)) == 0 else 1
    return varint(value, octets)


@st.composite
def lengths(draw: st.DrawFn, size: int) -> bytes:
    """The length of `size` bytes, one time in eight a lie."""
    lie = draw(LIES) if draw(st.integers(0, 7)) == 0 else 0
    return draw(varints(max(0, size + lie), 10))


@st.composite
def length_delimited(draw: st.DrawFn, payloads: st.SearchStrategy[bytes]) -> bytes:
    payload = draw(payloads)
    return draw(lengths(len(payload))) + payload


VALUES = {
    VARINT: st.integers(0, 2**64 - 1).flatmap(lambda value: varints(value, 10)),
    FIXED64: st.binary(min_size=8, max_size=8),
    END_GROUP: st.just(b""),
    FIXED32: st.binary(min_size=4, max_size=4),
    6: SMALL,
    7: SMALL,
}
# Wire types 4, 6 and 7 end a message's chances, so they are rare.
KINDS = st.sampled_from([VARINT, FIXED64, FIXED32, LENGTH, LENGTH, LENGTH, START_GROUP] * 4 + [END_GROUP, 6, 7])


@st.composite
def fields(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """One field of any wire type. `contents` fill groups and, now and then, length-delimited fields."""
    number, kind = draw(NUMBERS), draw(KINDS)
    tag = draw(varints(number << 3 | kind, 5))
    if kind == START_GROUP:
        end = number if draw(st.integers(0, 9)) else draw(NUMBERS)
        return tag + draw(contents) + draw(varints(end << 3 | END_GROUP, 5))
    if kind == LENGTH:
        return tag + draw(length_delimited(SMALL | contents))
    return tag + draw(VALUES[kind])


def sequences(contents: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.lists(fields(contents), max_size=6).map(b"".join)


# By hand, since draws would rarely nest groups to the depth that matters.
DEEP = st.integers(97, 103).map(lambda depth: varint(9 << 3 | START_GROUP) * depth + varint(9 << 3 | END_GROUP) * depth)
WELL_FORMED = st.builds(
    lambda **values: Message(**values).SerializeToString(),
    header=SMALL,
    number=st.integers(-(2**63), 2**63 - 1),
    text=st.text(max_size=5),
    shape=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
    data=st.lists(SMALL, max_size=4),
)
ASSEMBLED = st.recursive(sequences(SMALL) | DEEP, sequences, max_leaves=4)


@st.composite
def damaged(draw: st.DrawFn, messages: st.SearchStrategy[bytes]) -> bytes:
    """A message that is cut, or has a byte changed, put in or left out."""
    message = draw(messages)
    at = draw(st.integers(0, len(message)))
    byte = draw(st.binary(min_size=1, max_size=1))
    damages: list[Callable[[], bytes]] = [
        lambda: message[:at],
        lambda: message[at:],
        lambda: message[:at] + byte + message[at + 1 :],
        lambda: message[:at] + byte + message[at:],
        lambda: message[:at] + message[at + 1 :],
    ]
    return draw(st.sampled_from(damages))()


AMONG_OTHERS = st.tuples(WELL_FORMED, ASSEMBLED, WELL_FORMED).map(b"".join)
MESSAGES = ASSEMBLED | AMONG_OTHERS | damaged(WELL_FORMED | ASSEMBLED) | st.binary(max_size=64)


def parse(message: bytes) -> Any:  # noqa: ANN401 - see wire_message.Message
    try:
        return Message.FromString(message)
    except DecodeError:
        return None


def split_and_parse(message: bytes) -> tuple[Any, list[bytes]]:
    try:
        header, entries = split(message)
    except InvalidConvolution:
        return None, []
    return parse(header), [bytes(view) for view in entries]


def outcome(message: bytes | memoryview) -> tuple[bytes, list[memoryview]] | str:
    try:
        return split(message)
    except InvalidConvolution as error:
        return error.message


def has_data_of_a_length_that_protobuf_7_refuses(message: bytes) -> bool:
    """Tag 15 in one byte or overlong, then five bytes of a length and more to come."""
    return re.search(rb"(\x7a|\xfa\x80{0,3}\0)[\x80-\xff]{5}", message) is not None


@fuzz
@given(MESSAGES)
def test_what_protobuf_parses_is_split_and_nothing_else(message: bytes) -> None:
    assume(LONG_LENGTHS_PARSE or not has_data_of_a_length_that_protobuf_7_refuses(message))
    parsed = parse(message)
    described, entries = split_and_parse(message)
    event("refused" if parsed is None else f"{min(len(entries), 3)} entries")
    assert (described is None) == (parsed is None)
    if parsed is not None:
        assert entries == list(parsed.data)
        assert not described.data
        parsed.ClearField("data")
        assert described.SerializeToString(deterministic=True) == parsed.SerializeToString(deterministic=True)


@fuzz
@given(MESSAGES, st.integers(1, 9))
def test_where_a_message_lies_in_memory_makes_no_difference(message: bytes, offset: int) -> None:
    inside = memoryview(bytes(offset) + message + b"\xff" * offset)[offset:-offset]
    assert outcome(inside) == outcome(message)


@fuzz
@given(WELL_FORMED, st.lists(st.binary(max_size=300), max_size=6), st.sampled_from([1, 2, 8, 16, 32, 64]))
def test_protobuf_parses_what_join_makes(header: bytes, entries: list[bytes], alignment: int) -> None:
    header_alone = Message.FromString(header)
    message = join(header, entries, alignment=alignment)
    parsed = Message.FromString(message)
    assert list(parsed.data) == [*header_alone.data, *entries]
    parsed.ClearField("filler")
    del parsed.data[len(header_alone.data) :]
    assert parsed == header_alone


@fuzz
@given(SMALL, st.lists(st.binary(max_size=300), max_size=6), st.sampled_from([1, 2, 8, 16, 32, 64]))
def test_every_joined_entry_is_aligned(payload: bytes, entries: list[bytes], alignment: int) -> None:
    message = join(Message(header=payload).SerializeToString(), entries, alignment=alignment)
    views = split(message)[1]
    assert views == entries
    assert {offset_in(message, view) % alignment for view in views} <= {0}


@fuzz
@given(WELL_FORMED, st.lists(SMALL, max_size=6))
def test_without_filler_join_writes_what_protobuf_writes(header: bytes, entries: list[bytes]) -> None:
    message = Message.FromString(header)
    message.ClearField("data")
    joined = join(message.SerializeToString(), entries, filler=None)
    message.data.extend(entries)
    assert joined == message.SerializeToString()
