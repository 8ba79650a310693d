"""protobuf's wire format at its top level: the bytes of tensors apart from the message that describes them, uncopied.

protobuf's Python runtime copies a bytes field several times and takes no memoryview. So the sender lets protobuf
serialise all but the tensors and joins their bytes to it; the receiver splits them off and lets protobuf parse the
rest. What travels is plain protobuf: https://protobuf.dev/programming-guides/encoding. Where that text leaves room,
`split` does as protobuf's runtime does: docs/decisions/0002-wire-split-and-join.md.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, cast

from convolver.core.errors import InvalidConvolution, LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    Entry = Buffer | NDArray[Any]
    Field = tuple[int, int, int, int]  # tag, first byte, first byte of the body, byte after it

DATA_FIELD: Final = 15
FILLER_FIELD: Final = 14
MAX_ENTRIES: Final = 4096
MAX_FIELDS: Final = 65_536

_VARINT, _FIXED64, _LENGTH, _START_GROUP, _END_GROUP, _FIXED32 = range(6)
_SIZES: Final = {_FIXED64: 8, _START_GROUP: 0, _END_GROUP: 0, _FIXED32: 4}
_GROUP: Final = frozenset({_START_GROUP, _END_GROUP})
_MAX_GROUPS, _MAX_BYTES = 100, 2**31 - 1


def split(
    message: Buffer, field: int = DATA_FIELD, *, max_entries: int = MAX_ENTRIES, max_fields: int = MAX_FIELDS
) -> tuple[bytes, list[memoryview]]:
    """Take the length-delimited entries of `field` out of a serialised message, without copying them.

    Args:
        message: contiguous bytes, at most 2 GiB. The views keep them alive.
        field: number of a `repeated bytes` field.
        max_entries: how many entries of `field` are taken, checked before memory is spent on them.
        max_fields: how many fields are read in all, those within groups included.

    Returns:
        (header, entries): all other bytes, in order, for protobuf to parse, unknown fields and `field` of another wire
        type among them; and the entries, in order, as views into `message`.

    Raises:
        InvalidConvolution: protobuf would refuse it too; the text names the byte and the rule.
        LimitExceeded: more entries, fields or bytes than are read.
        TypeError: `message` is not contiguous.
    """
    view = memoryview(message).cast("B")
    fields = _fields(view, max_fields)
    wanted, end = field << 3 | _LENGTH, 0  # end of the last entry
    header: list[memoryview] = []
    entries: list[memoryview] = []
    for tag, start, body, stop in fields:
        if tag == wanted:
            if len(entries) == max_entries:
                raise _exceeded(f"entries of field {field}", max_entries + 1, max_entries)
            header.append(view[end:start])
            entries.append(view[body:stop])
            end = stop
        elif tag < 8:
            raise InvalidConvolution(f"the tag at byte {start} names field 0, but fields are numbered from 1")
        elif tag & 7 in _GROUP:
            _skip_group((tag, start, body, stop), fields)
    header.append(view[end:])
    return b"".join(header), entries


def join(
    header: bytes,
    entries: Sequence[Entry],
    *,
    field: int = DATA_FIELD,
    filler: int | None = FILLER_FIELD,
    alignment: int = 16,
) -> bytes:
    """Append `entries` to `header`, a serialised message, as entries of `field`: one allocation, one copy of each.

    Args:
        header: protobuf's bytes of all other fields.
        entries: C-contiguous buffers of any item type and shape (bfloat16 and float8 arrays are none: `.view("u1")`).
        field: number of a `repeated bytes` field.
        filler: number of a `bytes` field that nobody reads, put before an entry that would not start at a multiple of
            `alignment` from the start of the message. None: no filler.
        alignment: 1 to 64 bytes.

    Raises:
        BufferError: an entry is not C-contiguous.
        LimitExceeded: the message would be larger than 2 GiB, the most that protobuf carries.
        ValueError: `alignment` is out of its range.
    """
    if not 1 <= alignment <= 64:
        raise ValueError(f"alignment is {alignment}, but 1 to 64 bytes are possible")
    tag = _varint(field << 3 | _LENGTH)
    parts: list[bytes | memoryview] = [header]
    size = len(header)
    for index, entry in enumerate(entries):
        view = memoryview(cast("Any", entry))  # arrays are typed as Buffer from Python 3.12 on
        if not view.c_contiguous:
            raise BufferError(f"entry {index} of shape {view.shape} and strides {view.strides} is not C-contiguous")
        prefix = tag + _varint(view.nbytes)
        if filler is not None and (gap := -(size + len(prefix)) % alignment):
            prefix = _filler(filler, gap, alignment) + prefix
        parts += prefix, view
        size += len(prefix) + view.nbytes
    if size > _MAX_BYTES:
        raise _exceeded("bytes", size, _MAX_BYTES)
    return b"".join(parts)


def _fields(view: memoryview, max_fields: int) -> Iterator[Field]:
    """All fields in order, the marks of groups and what stands between them too."""
    start, end = 0, len(view)
    if end > _MAX_BYTES:
        raise _exceeded("bytes", end, _MAX_BYTES)
    for _ in range(max_fields):
        if start == end:
            return
        tag, body = view[start], start + 1
        if tag > 0x7F:
            tag, body = _read_varint(view, start, 5)
            if tag >> 32:
                raise InvalidConvolution(f"the tag at byte {start} is {tag}, but tags have 32 bits")
        if tag & 7 == _LENGTH:
            size, body = _read_varint(view, body, 10)
        else:
            size = _size(view, tag, start, body)
        left, stop = end - body, body + size
        if size > left:
            raise InvalidConvolution(f"field {tag >> 3} at byte {start} announces {size} bytes, but {left} are left")
        yield tag, start, body, stop
        start = stop
    if start < end:
        raise _exceeded("fields", max_fields + 1, max_fields)


def _size(view: memoryview, tag: int, start: int, body: int) -> int:
    """Bytes of a value that no length precedes."""
    if tag & 7 == _VARINT:
        return _read_varint(view, body, 10)[1] - body
    if tag & 7 not in _SIZES:
        raise InvalidConvolution(f"field {tag >> 3} at byte {start} has wire type {tag & 7}, but there are 0 to 5")
    return _SIZES[tag & 7]


def _skip_group(first: Field, following: Iterator[Field]) -> None:
    """Draw from `following` up to the end of the group that `first` begins."""
    groups: list[int] = []
    for tag, start, _, _ in chain((first,), following):
        number, kind = tag >> 3, tag & 7
        if kind == _START_GROUP:
            groups.append(number)
            if len(groups) > _MAX_GROUPS:
                raise InvalidConvolution(f"group {number} at byte {start} is nested more than {_MAX_GROUPS} deep")
        elif kind == _END_GROUP and (not groups or groups.pop() != number):
            raise InvalidConvolution(f"the end of group {number} at byte {start} does not match a beginning")
        if not groups:
            return
    raise InvalidConvolution(f"group {first[0] >> 3} at byte {first[1]} does not end")


def _read_varint(view: memoryview, start: int, octets: int) -> tuple[int, int]:
    """(value, byte after it) of the varint at `start`. As in protobuf, bits beyond the 64th are dropped."""
    if start < len(view) and (octet := view[start]) < 0x80:
        return octet, start + 1
    position, value, shift = start, 0, 0
    while position < len(view) and shift < 7 * octets:
        octet = view[position]
        position += 1
        if octet < 0x80:
            return (value | octet << shift) & 0xFFFF_FFFF_FFFF_FFFF, position
        value |= (octet & 0x7F) << shift
        shift += 7
    raise InvalidConvolution(f"the varint at byte {start} does not end, within {octets} bytes or the message")


@lru_cache(maxsize=1024)  # sizes come again and again
def _varint(value: int) -> bytes:
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


@cache
def _filler(number: int, gap: int, alignment: int) -> bytes:
    """A field that takes `gap` bytes modulo `alignment`, its tag and length included."""
    tag = _varint(number << 3 | _LENGTH)
    size = (gap - len(tag) - 1) % alignment
    return tag + bytes([size]) + bytes(size)


def _exceeded(what: str, value: int, limit: int) -> LimitExceeded:
    return LimitExceeded(f"the message holds {value} {what} or more, at most {limit} are read", what, limit, value)
