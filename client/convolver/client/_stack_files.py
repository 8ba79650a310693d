"""Stacks in files, JSON or TOML: the input's shape and dtype, where the weights are, and the layers as tables."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from convolver.client._stack_layers import Conv, Pool, check_names, near
from convolver.client._weights import load_weights, unique
from convolver.core import dtypes
from convolver.core.errors import InvalidConvolution, shown
from convolver.core.parameters import LayerParameters
from convolver.core.pooling import PoolingKind, PoolingParameters
from convolver.core.stack import MOST_LAYERS
from convolver.core.values import number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from convolver.core.dtypes import DTypeName
    from convolver.core.tensors import Array

LARGEST_FILE = 2**20
"""Bytes of a description; weights are in a file of their own."""

_FIELDS = ("input", "dtype", "weights", "layers")
_KINDS = ("conv", *get_args(PoolingKind))
_CONV_FIELDS = ("kind", "weight", "bias", *LayerParameters.__annotations__)
_POOL_FIELDS = tuple(PoolingParameters.__annotations__)

_SIZES = ("an integer or a list", (int, list))
_INTEGER = ("an integer", (int,))
_WORD = ("a word", (str,))
_FLAG = ("true or false", (bool,))
_TYPES: dict[str, tuple[str, tuple[type, ...]]] = {
    **dict.fromkeys(("stride", "dilation", "input_dilation", "output_padding", "output_size", "kernel"), _SIZES),
    **dict.fromkeys(("groups", "batch_groups"), _INTEGER),
    **dict.fromkeys(("padding_mode", "layout", "activation", "kind", "dtype", "weights"), _WORD),
    **dict.fromkeys(("transposed", "flip"), _FLAG),
    "padding": ("an integer, a list or a word", (int, list, str)),
    "padding_value": ("a number", (int, float)),
    "weight": ("a shape, which is a list, or the name of a tensor", (list, str)),
    "bias": ("true, false or the name of a tensor", (bool, str)),
    "input": ("a shape, which is a list", (list,)),
    "layers": ("a list of tables", (list,)),
}
"""What JSON and TOML write for each field. What the values mean is checked with the whole stack."""


class StackFile(NamedTuple):
    """A stack as a file describes it: the input's shape and dtype, and the layers."""

    input: tuple[int, ...]
    dtype: DTypeName
    layers: list[Conv | Pool]


def load_stack(path: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None) -> StackFile:
    """The stack that a `.json` or `.toml` file describes (docs/layers.md). `weights` is a file in place of the one that
    it names.

    Raises InvalidConvolution naming the file and the field (`layers[2].stride`), and WeightsError for the weights. How
    the layers fit together is checked when they are planned or run.
    """
    file = Path(path)
    with _prefixed(f"{file}: ", ""):
        told = _read(file)
        _check(told, _FIELDS)
        for field in ("input", "layers"):
            if field not in told:
                raise InvalidConvolution(f"{field} is missing", field)
        shape = tuple(number(size, f"input[{i}]", low=0) for i, size in enumerate(told["input"]))
        dtype = dtypes.named(told.get("dtype", "float32")).name
        if not 1 <= len(told["layers"]) <= MOST_LAYERS:
            raise InvalidConvolution(f"layers has {len(told['layers'])} entries, not 1 to {MOST_LAYERS}", "layers")
        source = Path(weights) if weights is not None else file.parent / told["weights"] if "weights" in told else None
        tensors = {} if source is None else load_weights(source)
        return StackFile(shape, dtype, [_layer(i, table, tensors) for i, table in enumerate(told["layers"])])


def _read(file: Path) -> dict[str, Any]:
    parsers: dict[str, Callable[[str], Any]] = {".json": _from_json, ".toml": tomllib.loads}
    parse = parsers.get(file.suffix.lower())
    if parse is None:
        raise InvalidConvolution(f"is neither {' nor '.join(parsers)}")
    content = _content(file)
    try:
        told: object = parse(content.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidConvolution(f"is no {file.suffix[1:].upper()}: {error}") from error
    if not isinstance(told, dict):
        raise InvalidConvolution(f"holds {shown(told)}, not an object with {', '.join(_FIELDS)}")
    return told


def _from_json(text: str) -> Any:  # noqa: ANN401 - JSON
    return json.loads(text, object_pairs_hook=unique)


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(LARGEST_FILE + 1)
    except OSError as error:
        raise InvalidConvolution(error.strerror or str(error)) from error
    if len(content) > LARGEST_FILE:
        raise InvalidConvolution(f"has more than {LARGEST_FILE} bytes; weights belong into a file of their own")
    return content


def _layer(i: int, table: object, tensors: Mapping[str, Array]) -> Conv | Pool:
    if not isinstance(table, dict):
        raise InvalidConvolution(f"layers[{i}] is {shown(table)}, not a table", f"layers[{i}]")
    with _prefixed(f"layers[{i}].", f"layers[{i}]."):
        kind = table.get("kind")
        if not isinstance(kind, str) or kind not in _KINDS:
            told = f"{shown(kind)}{near(str(kind), _KINDS)}" if "kind" in table else f"missing{near('', _KINDS)}"
            raise InvalidConvolution(f"kind is {told}", "kind")
        _check(table, _CONV_FIELDS if kind == "conv" else _POOL_FIELDS)
        if kind != "conv":
            return Pool(**table)
        given = {name: value for name, value in table.items() if name not in ("kind", "weight", "bias")}
        return Conv(*_operands(table, tensors), **given)


def _operands(table: Mapping[str, Any], tensors: Mapping[str, Array]) -> tuple[Any, Any]:
    """Weight and bias: arrays, or the weight's shape and whether there is a bias."""
    weight, bias = table.get("weight"), table.get("bias", False)
    if weight is None:
        raise InvalidConvolution("weight is missing", "weight")
    if isinstance(weight, list):
        return tuple(weight), bias
    return _tensor("weight", weight, tensors), None if bias is False else _tensor("bias", bias, tensors)


def _tensor(field: str, name: object, tensors: Mapping[str, Array]) -> Array:
    if not isinstance(name, str):
        raise InvalidConvolution(
            f"{field} is {shown(name)}; beside a tensor it must be false or a tensor's name", field
        )
    if name not in tensors:
        why = near(name, tensors) if tensors else "; name a file of them by weights"
        raise InvalidConvolution(f"{field} is {shown(name)}, which is no tensor of the weights{why}", field)
    return tensors[name]


def _check(table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Every field is known and of a type that it may have."""
    check_names(table, known)
    for field, value in table.items():
        what, types = _TYPES[field]
        if type(value) not in types:
            raise InvalidConvolution(f"{field} is {shown(value)}; it must be {what}", field)


@contextmanager
def _prefixed(message: str, field: str) -> Iterator[None]:
    try:
        yield
    except InvalidConvolution as refusal:
        path = f"{field}{refusal.field}" if refusal.field else field.rstrip(".")
        raise InvalidConvolution(f"{message}{refusal.message}", path) from None
