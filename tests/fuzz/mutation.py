"""Inputs that get past the parser: messages that are changed field by field, now and then to numbers that nobody would
write.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from random import Random
from typing import TYPE_CHECKING, Any

import atheris
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from tests.fuzz.target import framed, frames

from convolver.core.codec import TO_DTYPE
from convolver.core.dtypes import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convolver.v1 import tensor_pb2

Mutate = Callable[[bytes, int, int], bytes]
"""libFuzzer's custom mutator: input, most bytes and seed, to another input."""

LARGEST_TENSOR = 4096
"""Bytes of a tensor that are made to match its header."""

_INTEGERS = (0, -1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**64 - 1, -(2**31), -(2**63))
_DOUBLES = (0.0, -1.0, 0.5, 60.0, 1e-308, 1e308, float("inf"), float("nan"))
_STRINGS = ("", "auto", "reference", "torch", "é" * 40, "x" * 300, f"sha256:{'0' * 64}", f"SHA256:{'f' * 64}")
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def of_message(kind: type[Message]) -> Mutate:
    """For inputs that are one message of this kind."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        return _fitting(_changed(kind, data, Random(seed)), data, max_size)

    return mutate


def of_messages(kind: type[Message]) -> Mutate:
    """For inputs that are messages of this kind, framed."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        random, messages = Random(seed), frames(data)
        if not messages or random.random() < 0.3:
            _reorder(messages, random)
        else:
            at = random.randrange(len(messages))
            messages[at] = _changed(kind, messages[at], random)[:0xFFFF]
        return _fitting(framed(messages), data, max_size)

    return mutate


def of_one_of(kinds: list[type[Message]]) -> Mutate:
    """For inputs whose first byte says of which kind the messages are, framed, that follow."""

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if len(data) < 2:
            mutated: bytes = atheris.Mutate(data, max_size)
            return mutated
        inner = of_messages(kinds[data[0] % len(kinds)])
        return data[:1] + inner(data[1:], max_size - 1, seed)

    return mutate


def _fitting(mutated: bytes, data: bytes, max_size: int) -> bytes:
    if len(mutated) <= max_size:
        return mutated
    bytewise: bytes = atheris.Mutate(data, max_size)
    return bytewise


def _reorder(messages: list[bytes], random: Random) -> None:
    """Cuts, repeats, leaves out, swaps or puts in one of them."""
    at = random.randrange(len(messages) + 1)
    some, kind = messages[at : at + 1], random.randrange(5)
    if kind == 0 or not some:
        messages.insert(at, random.choice([b"", b"\x7a\x00", b"\x7a\x01x", random.randbytes(9)]))
    elif kind == 1:
        messages[at] = some[0][: random.randint(0, len(some[0]))]
    elif kind == 2:
        messages[at:at] = some
    elif kind == 3:
        del messages[at]
    else:
        messages[at : at + 2] = reversed(messages[at : at + 2])


def _changed(kind: type[Message], data: bytes, random: Random) -> bytes:
    """A message with some of its fields changed; with some of its bytes changed where it is none, and now and then."""
    bytewise = random.random() < 0.15
    try:
        message = kind() if bytewise else kind.FromString(data)
    except DecodeError:
        bytewise = True
    if bytewise:
        mutated: bytes = atheris.Mutate(data, len(data) + 16)
        return mutated
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _change(message, random)
    if random.random() < 0.7:
        match_data(message)
    return message.SerializeToString()


def _messages(message: Message) -> Iterator[Message]:
    """The message, and all that are set within it."""
    yield message
    for field, value in message.ListFields():
        if field.cpp_type == field.CPPTYPE_MESSAGE and not _is_map(field):
            for inner in value if field.is_repeated else [value]:
                yield from _messages(inner)


def _is_map(field: Any) -> bool:  # noqa: ANN401  # a descriptor of protobuf's C or Python
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def _change(whole: Message, random: Random) -> None:
    """Changes one field of the message or of one within it, every other time one that is set."""
    messages = [*_messages(whole)]
    fields = [(message, field) for message in messages for field in message.DESCRIPTOR.fields]
    present = [(message, field) for message in messages for field, _ in message.ListFields()]
    if not fields:
        return
    message, field = random.choice(present if present and random.random() < 0.5 else fields)
    if random.random() < 0.1 or _is_map(field):
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_list(getattr(message, field.name), field, random)
    elif field.cpp_type == field.CPPTYPE_MESSAGE:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _value(field, random))


def _change_list(entries: Any, field: Any, random: Random) -> None:  # noqa: ANN401  # of messages or of scalars
    """Puts in, repeats, leaves out or changes an entry."""
    at, kind = random.randrange(len(entries) or 1), random.randrange(4)
    if kind == 0 and entries:
        del entries[at]
    elif field.cpp_type == field.CPPTYPE_MESSAGE:
        entries.add().CopyFrom(entries[at]) if entries and kind < 3 else entries.add()
    elif not entries or kind == 1:
        entries.insert(at, entries[at] if entries and random.random() < 0.5 else _value(field, random))
    else:
        entries[at] = _value(field, random)


def _value(field: Any, random: Random) -> Any:  # noqa: ANN401  # of the field's type
    """Small ones most often: they are what is in order."""
    if field.cpp_type in _RANGES:
        low, high = _RANGES[field.cpp_type]
        return min(max(random.randint(-2, 9) if random.random() < 0.7 else random.choice(_INTEGERS), low), high)
    if field.cpp_type == field.CPPTYPE_ENUM:
        return random.randint(0, 18) if random.random() < 0.9 else random.choice((-1, 2**31 - 1))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return random.random() < 0.5
    if field.cpp_type in (field.CPPTYPE_DOUBLE, field.CPPTYPE_FLOAT):
        return random.choice(_DOUBLES)
    is_text = field.type == field.TYPE_STRING
    return random.choice(_STRINGS) if is_text else random.randbytes(random.choice((0, 1, 4, 16, 64)))


def match_data(message: Any) -> None:  # noqa: ANN401  # of any kind
    """Makes the data of a request what its headers say, as far as that is little."""
    fields = message.DESCRIPTOR.fields_by_name
    if "data" not in fields or "convolution" not in fields or not message.HasField("convolution"):
        return
    sizes = map(_size, _tensors(message.convolution))
    known = b"".join(message.data) or b"\1"
    message.data[:] = [(known * (size // len(known) + 1))[:size] for size in sizes]


def _tensors(convolution: Any) -> Iterator[tensor_pb2.Tensor]:  # noqa: ANN401  # of the generated class
    """The headers whose data is in the message, in the order of tensors."""
    for layer in convolution.layers:
        if layer.HasField("definition"):
            for name in ("weight", "bias"):
                if layer.definition.HasField(name) and not layer.HasField(f"{name}_source"):
                    yield getattr(layer.definition, name)
    if not convolution.HasField("input_source"):
        yield convolution.input
    if convolution.HasField("gradients") and not convolution.gradients.HasField("grad_output_source"):
        yield convolution.gradients.grad_output


def _size(tensor: tensor_pb2.Tensor) -> int:
    name = TO_DTYPE.get(tensor.dtype)
    size = prod(tensor.shape) * (TABLE[name].itemsize if name else 1)
    return size if 0 <= size <= LARGEST_TENSOR else 0
