"""What is fuzzed, and sequences of messages as one input."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tests.fuzz.mutation import Mutate


class Target(NamedTuple):
    """`run` raises what is to be found, `seeds` are inputs in order, `mutate` makes others of them."""

    run: Callable[[bytes], None]
    seeds: Sequence[bytes]
    mutate: Mutate


def framed(messages: Iterable[bytes]) -> bytes:
    """Messages, each of less than 64 KiB, as one input."""
    return b"".join(len(message).to_bytes(2, "little") + message for message in messages)


def frames(data: bytes) -> list[bytes]:
    """The messages of an input. Any bytes are some: the last message may be shorter than it says."""
    messages, start = [], 0
    while start + 2 <= len(data):
        end = start + 2 + int.from_bytes(data[start : start + 2], "little")
        messages.append(data[start + 2 : end])
        start = end
    return messages
