"""Between the messages of convolver.v1 and the core's own words: headers, parameters, how to execute. Whole requests
are `request_codec`'s affair, bytes and arrays `tensors`'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from convolver.core import dtypes
from convolver.core.errors import InvalidConvolution, shown
from convolver.core.operation import Execution, Tensor
from convolver.core.parameters import Parameters
from convolver.core.parse import parse_execution
from convolver.core.values import explicit_padding, flag, number, per_dimension, real
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import tensor_pb2

TO_DTYPE: dict[int, str] = {
    value: name.removeprefix("DATA_TYPE_").lower()
    for name, value in tensor_pb2.DataType.items()
    if value != tensor_pb2.DATA_TYPE_UNSPECIFIED
}
FROM_DTYPE = {name: tensor_pb2.DataType.ValueType(value) for value, name in TO_DTYPE.items()}

LISTS = ("stride", "dilation", "input_dilation", "output_padding", "output_size")


class Words:
    """One enum of the contract and the core's words for it: PADDING_MODE_REFLECT is "reflect", the zero value is no
    word at all.
    """

    def __init__(self, enum: Any, prefix: str) -> None:  # noqa: ANN401 - the generated enum wrappers have no common type
        self.to_word = {value: name.removeprefix(prefix).lower() for name, value in enum.items() if value}
        self.to_value = {name: value for value, name in self.to_word.items()}

    def read(self, value: int, field: str) -> str | None:
        """The word, None for the zero value. Raises InvalidConvolution for a number that the contract does not know."""
        if value and value not in self.to_word:
            raise InvalidConvolution(f"{field} is {value}, which this version of the contract does not know", field)
        return self.to_word.get(value)

    def write(self, word: str | None, field: str) -> Any:  # noqa: ANN401 - a value of that enum
        """The value, zero for None. Raises InvalidConvolution for what is no word."""
        if word is None:
            return 0
        if word not in self.to_value:
            raise InvalidConvolution(f"{field} is {shown(word)}, which is none of {', '.join(self.to_value)}", field)
        return self.to_value[word]


_PADDING_WORD = Words(pb.PaddingWord, "PADDING_WORD_")
_OPERATION_WORDS = {
    "padding_mode": Words(pb.PaddingMode, "PADDING_MODE_"),
    "layout": Words(pb.Layout, "LAYOUT_"),
}
ACTIVATION = Words(pb.Activation, "ACTIVATION_")
OVERFLOW = Words(pb.Overflow, "OVERFLOW_")
EXECUTION_WORDS = {
    "precision": Words(pb.Precision, "PRECISION_"),
    "algorithm": Words(pb.Algorithm, "ALGORITHM_"),
    "priority": Words(pb.Priority, "PRIORITY_"),
}


def tensor_to_proto(tensor: Tensor) -> tensor_pb2.Tensor:
    """The header of a tensor."""
    return tensor_pb2.Tensor(dtype=FROM_DTYPE[tensor.dtype], shape=tensor.shape)


def tensor_from_proto(message: tensor_pb2.Tensor, field: str) -> Tensor:
    """The header of a tensor. Raises InvalidConvolution for an unknown or missing dtype, or too many dimensions."""
    name = TO_DTYPE.get(message.dtype)
    if name is None:
        raise InvalidConvolution(
            f"{field}.dtype is {message.dtype}, which is no type of this contract", f"{field}.dtype"
        )
    return Tensor(dtypes.named(name).name, entries(message.shape, f"{field}.shape"))


def entries(values: Sequence[int], field: str) -> tuple[int, ...]:
    """A list's entries. A message may have millions, which are refused unread."""
    if len(values) > 8:
        raise InvalidConvolution(f"{field} has {len(values)} entries; a convolution has at most 5 dimensions", field)
    return tuple(values)


def parameters_to_proto(parameters: Parameters, ndim: int) -> pb.Parameters:
    """The parameters as a message, words kept as words. Raises InvalidConvolution for what is no word or number, and
    where they cannot be spread over `ndim` dimensions.
    """
    given: dict[str, Any] = {name: value for name, value in parameters.items() if value is not None}
    lists: dict[str, Any] = {name: per_dimension(given[name], ndim, name) for name in LISTS if name in given}
    value = real(given.get("padding_value", 0.0), "padding_value")
    message = pb.Parameters(
        **lists, transposed=flag(given, "transposed"), flip=flag(given, "flip"), padding_value=value
    )
    for name in ("groups", "batch_groups"):
        if name in given:
            setattr(message, name, number(given[name], name))
    for name, words in _OPERATION_WORDS.items():
        if name in given:
            setattr(message, name, words.write(given[name], name))
    _set_padding(message, given.get("padding", 0), ndim)
    return message


def _set_padding(message: pb.Parameters, padding: Any, ndim: int) -> None:  # noqa: ANN401 - Padding, as the caller wrote it
    if isinstance(padding, str):
        message.padding_word = _PADDING_WORD.write(padding, "padding")
        return
    begin, end = explicit_padding(padding, ndim)
    message.explicit_padding.begin.extend(begin)
    message.explicit_padding.end.extend(end)


def parameters_from_proto(message: pb.Parameters) -> Parameters:
    """The parameters as callers write them; what the message leaves out is left out."""
    given: dict[str, Any] = {name: entries(getattr(message, name), name) for name in LISTS if getattr(message, name)}
    for name in ("groups", "batch_groups"):
        if message.HasField(cast("Any", name)):
            given[name] = getattr(message, name)
    for name, words in _OPERATION_WORDS.items():
        given[name] = words.read(getattr(message, name), name)
    given |= {"transposed": message.transposed, "flip": message.flip, "padding_value": message.padding_value}
    kind = message.WhichOneof("padding")
    if kind == "padding_word":
        given["padding"] = _PADDING_WORD.read(message.padding_word, "padding") or _no_word()
    elif kind == "explicit_padding":
        given["padding"] = _pairs(message.explicit_padding)
    return cast("Parameters", given)


def _no_word() -> str:
    raise InvalidConvolution("padding_word is UNSPECIFIED, which is no word", "padding")


def _pairs(padding: pb.ExplicitPadding) -> Sequence[tuple[int, int]] | int:
    begin, end = entries(padding.begin, "padding"), entries(padding.end, "padding")
    if len(begin) != len(end):
        raise InvalidConvolution(f"padding has {len(begin)} begins, but {len(end)} ends", "padding")
    return list(zip(begin, end, strict=True)) or 0


def execution_to_proto(execution: Execution) -> pb.Execution:
    """How to execute, every default written out."""
    words = {name: words.to_value[getattr(execution, name)] for name, words in EXECUTION_WORDS.items()}
    return pb.Execution(backend=execution.backend, deterministic=execution.deterministic, **words)


def execution_from_proto(message: pb.Execution) -> Execution:
    """How to execute. Raises InvalidConvolution for what is no word."""
    words = {name: words.read(getattr(message, name), name) for name, words in EXECUTION_WORDS.items()}
    given = {**words, "backend": message.backend, "deterministic": message.deterministic}
    return parse_execution(cast("Parameters", given))
