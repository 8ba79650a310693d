"""Messages as bytes: what is wrong with one is answered by the one table of errors, not by gRPC."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from convolver.core.errors import InvalidConvolution, LimitExceeded, Unsupported
from convolver.core.unknown import unknown_field
from convolver.core.wire import split

LARGEST_HEADER = 2**20
"""Bytes of a message without its data that are parsed: on the event loop, where health has to be answered too."""

_Read = TypeVar("_Read", bound=Message)


def read(kind: type[_Read], data: bytes) -> _Read:
    """The message. Raises InvalidConvolution for what is not one, LimitExceeded for one that would take long."""
    _check_header(data)
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidConvolution(f"the request is not a {kind.DESCRIPTOR.full_name}: {error}") from error


def known(kind: type[_Read], data: bytes) -> _Read:
    """The message. Raises as `read` and as `refuse_unknown`."""
    message = read(kind, data)
    refuse_unknown(message, "request")
    return message


def refuse_unknown(message: Message, path: str) -> None:
    """Raises Unsupported for a field that this version does not know, at any depth."""
    unknown = unknown_field(message, path)
    if unknown:
        raise Unsupported(f"the request has the field {unknown}, which this version of the contract does not know")


def taken_out(message: bytes, field: int) -> tuple[bytes, bytes]:
    """All but a field that is a message, and that field as it was sent (sent twice, its parts are merged by standing
    one after the other). Raises as `read`.
    """
    _check_header(message)
    rest, parts = split(message, field)
    return rest, b"".join(parts)


def _check_header(data: bytes) -> None:
    size = len(data)
    if size > LARGEST_HEADER:
        text = f"the request has {size} bytes beside its data, at most {LARGEST_HEADER} are read"
        raise LimitExceeded(text, "bytes beside the data", LARGEST_HEADER, size)
