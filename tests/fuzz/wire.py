"""split against protobuf's own parser, and join against both."""

from __future__ import annotations

import re
from typing import Any

from google.protobuf.message import DecodeError
from tests.core.wire_message import LONG_LENGTHS_PARSE, Message
from tests.fuzz import mutation
from tests.fuzz.target import Target

from convolver.core.errors import InvalidConvolution
from convolver.core.wire import join, split

_LONG_LENGTH = re.compile(rb"(\x7a|\xfa\x80{0,3}\0)[\x80-\xff]{5}")
"""Tag 15, then a length of more than five bytes, which protobuf 7 refuses."""


def target(_: str) -> Target:
    """The only one."""
    seeds = [
        Message(
            header=b"abc", number=-1, text="é", shape=[1, -2], data=[b"", b"0" * 200], filler=b"1"
        ).SerializeToString(),
        Message(inner=Message(data=[b"x"], bits=[7]), ratio=0.5, contents=[b"", b"c"]).SerializeToString(),
        b"\x4b\x53\x08\x01\x54\x4c\x7a\x01x",  # groups
        b"\xfa\x00\x81\x00x",  # an overlong tag and an overlong length
    ]
    return Target(run, seeds, mutation.of_message(Message))


def run(data: bytes) -> None:
    """What protobuf parses is split, and nothing else; what is split is joined again."""
    if not LONG_LENGTHS_PARSE and _LONG_LENGTH.search(data):
        return
    parsed, (header, entries) = _parsed(data), _split(data)
    described = None if header is None else _parsed(header)
    assert (described is None) == (parsed is None)
    if parsed is None or header is None or described is None:
        return
    assert entries == list(parsed.data)
    assert not described.data
    assert _split(join(header, entries, filler=None)) == (header, entries)
    parsed.ClearField("data")
    assert described.SerializeToString(deterministic=True) == parsed.SerializeToString(deterministic=True)


def _parsed(data: bytes) -> Any:  # noqa: ANN401  # see wire_message.Message
    try:
        return Message.FromString(data)
    except DecodeError:
        return None


def _split(data: bytes) -> tuple[bytes | None, list[memoryview]]:
    try:
        return split(data)
    except InvalidConvolution:
        return None, []
