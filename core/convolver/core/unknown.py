"""Fields that this version of the contract does not know: what they ask for would be left out in silence."""

from __future__ import annotations

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet


def unknown_field(message: Message, path: str = "convolution") -> str:
    """The path and number of a field, at any depth, that this version of the contract does not know; empty if none."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        return f"{path}.{unknown[0].field_number}"
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in [value] if isinstance(value, Message) else value:
                found = unknown_field(item, f"{path}.{field.name}")
                if found:
                    return found
    return ""
