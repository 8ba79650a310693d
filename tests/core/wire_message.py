"""A message of all wire types in a descriptor pool of its own, and bytes for it that protobuf would never write."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = range(6)

_Kind = descriptor_pb2.FieldDescriptorProto
_FIELDS = {
    "header": (1, _Kind.TYPE_BYTES, _Kind.LABEL_OPTIONAL),
    "number": (2, _Kind.TYPE_INT64, _Kind.LABEL_OPTIONAL),
    "inner": (3, _Kind.TYPE_MESSAGE, _Kind.LABEL_OPTIONAL),
    "text": (4, _Kind.TYPE_STRING, _Kind.LABEL_OPTIONAL),
    "ratio": (5, _Kind.TYPE_DOUBLE, _Kind.LABEL_OPTIONAL),
    "shape": (6, _Kind.TYPE_SINT32, _Kind.LABEL_REPEATED),
    "contents": (7, _Kind.TYPE_BYTES, _Kind.LABEL_REPEATED),
    "bits": (8, _Kind.TYPE_FIXED32, _Kind.LABEL_REPEATED),
    "filler": (14, _Kind.TYPE_BYTES, _Kind.LABEL_OPTIONAL),
    "data": (15, _Kind.TYPE_BYTES, _Kind.LABEL_REPEATED),
}


def _message_class() -> Any:  # noqa: ANN401 - the class has its fields from a descriptor, which no type checker sees
    file = descriptor_pb2.FileDescriptorProto(name="wire_message.proto", package="wire", syntax="proto3")
    message = file.message_type.add(name="Message")
    for name, (number, kind, label) in _FIELDS.items():
        type_name = ".wire.Message" if kind == _Kind.TYPE_MESSAGE else None
        message.field.add(name=name, number=number, type=kind, label=label, type_name=type_name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("wire.Message"))


Message = _message_class()


def parses(message: bytes) -> bool:
    """Whether protobuf takes `message`."""
    try:
        Message.FromString(message)
    except DecodeError:
        return False
    return True


def offset_in(message: bytes, view: memoryview) -> int:
    """Where in `message` a view into it starts."""
    return np.frombuffer(view, np.uint8).ctypes.data - np.frombuffer(message, np.uint8).ctypes.data


def varint(value: int, octets: int = 1) -> bytes:
    """`value` in at least so many `octets`: more than it needs make it overlong."""
    out = bytearray()
    while value > 0x7F or len(out) + 1 < octets:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


def entry(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return tag(number, LENGTH) + varint(len(payload)) + payload


def group(number: int, contents: bytes = b"") -> bytes:
    return tag(number, START_GROUP) + contents + tag(number, END_GROUP)


# Lengths written in 6 to 10 bytes: split and protobuf 6 take them, protobuf 7 does not, no serialiser writes them.
LONG_LENGTHS_PARSE = parses(tag(15, LENGTH) + varint(0, 6))
