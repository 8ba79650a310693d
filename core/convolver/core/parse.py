"""From what a caller writes to an Operation: scalars are spread, words become numbers, every rule that shapes can
decide is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, get_args

from convolver.core import dtypes, padding
from convolver.core.errors import InvalidConvolution
from convolver.core.operation import Execution, Operation, Tensor
from convolver.core.parameters import (
    Activation,
    Algorithm,
    ExecutionParameters,
    Layout,
    Overflow,
    PaddingMode,
    Parameters,
    Precision,
    Priority,
)
from convolver.core.values import number, per_dimension, word


def parse(input: Tensor, weight: Tensor, bias: Tensor | None, parameters: Parameters) -> Operation:
    """The operation that these headers and parameters describe.

    `input` is (N, C, *S) or (C, *S), `weight` (O, C/groups, *K), transposed (C, O/groups, *K), `bias` (O,); see
    `layout` for the other order. Raises InvalidConvolution naming the field, the rule and the numbers.
    """
    given = _without_none(parameters)
    _check_tensors(input, weight, bias)
    ndim = len(weight.shape) - 2
    spread = partial(per_dimension, ndim=ndim)
    transposed = bool(given.get("transposed", False))
    _check_transposed_alone(given, transposed)
    bare = Operation(
        dtype=input.dtype,
        output_dtype=_output_dtype(given, input.dtype),
        input_shape=input.shape,
        weight_shape=weight.shape,
        has_bias=bias is not None,
        stride=spread(given.get("stride", 1), field="stride", low=1),
        dilation=spread(given.get("dilation", 1), field="dilation", low=1),
        input_dilation=spread(given.get("input_dilation", 1), field="input_dilation", low=1),
        pad_begin=(0,) * ndim,
        pad_end=(0,) * ndim,
        padding_mode=word(given, "padding_mode", PaddingMode, "zeros"),
        padding_value=_padding_value(given, input.dtype),
        groups=number(given.get("groups", 1), "groups", low=1),
        batch_groups=number(given.get("batch_groups", 1), "batch_groups", low=1),
        transposed=transposed,
        output_padding=(0,) * ndim,
        flip=bool(given.get("flip", False)),
        layout=word(given, "layout", Layout, "channels_first"),
        activation=_activation(given, input.dtype),
        overflow=word(given, "overflow", Overflow, "error"),
    )
    _check_channels(bare, bias)
    _check_batch_groups(bare)
    return padding.padded(bare, given)


def parse_execution(parameters: ExecutionParameters) -> Execution:
    """How to execute. Raises InvalidConvolution for a word that is not one."""
    given = _without_none(parameters)
    backend = given.get("backend") or "auto"
    if not isinstance(backend, str):
        raise InvalidConvolution(
            f"backend is {backend!r}; it must be a name such as 'auto', 'reference' or 'torch'", "backend"
        )
    return Execution(
        precision=word(given, "precision", Precision, "highest"),
        algorithm=word(given, "algorithm", Algorithm, "auto"),
        backend=backend[:200],
        deterministic=bool(given.get("deterministic", False)),
        priority=word(given, "priority", Priority, "interactive"),
    )


def _without_none(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            dtypes.named(tensor.dtype, f"{name}.dtype")
            for i, size in enumerate(tensor.shape):
                number(size, f"{name}.shape[{i}]", low=0)
    if not 3 <= len(weight.shape) <= 5:
        raise InvalidConvolution(
            f"weight {weight.shape} has {max(len(weight.shape) - 2, 0)} spatial dimensions; 1, 2 or 3 are supported",
            "weight.shape",
        )
    ndim = len(weight.shape) - 2
    if len(input.shape) not in (ndim + 1, ndim + 2):
        raise InvalidConvolution(
            f"input {input.shape} has {len(input.shape)} dimensions; weight {weight.shape} takes {ndim + 2}, "
            f"or {ndim + 1} unbatched",
            "input.shape",
        )
    _check_dtypes(input, weight, bias)
    if 0 in weight.shape:
        raise InvalidConvolution(
            f"weight {weight.shape} has a dimension of 0", f"weight.shape[{weight.shape.index(0)}]"
        )


def _check_dtypes(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != input.dtype:
            raise InvalidConvolution(
                f"input is {input.dtype}, but {name} is {tensor.dtype}; they must be the same", f"{name}.dtype"
            )


def _check_transposed_alone(given: Mapping[str, Any], transposed: bool) -> None:  # noqa: FBT001 - the field's word
    forward_only = {"input_dilation": 1, "batch_groups": 1, "padding_mode": "zeros"}
    for field, default in forward_only.items():
        value = given.get(field, default)
        plain = value == default or (isinstance(value, Sequence) and all(v == default for v in value))
        if transposed and not plain:
            raise InvalidConvolution(f"{field} is {value!r:.80}; with transposed=True it must be {default!r}", field)
    for field in ("output_padding", "output_size"):
        value = given.get(field, 0)
        if not transposed and value != 0 and not (isinstance(value, Sequence) and all(v == 0 for v in value)):
            raise InvalidConvolution(f"{field} is {value!r:.80}; it goes with transposed=True alone", field)


def _check_channels(op: Operation, bias: Tensor | None) -> None:
    channels, (first, second) = op.canonical_input[1], op.canonical_weight[:2]
    expected = first if op.transposed else second * op.groups
    axis = f"input.shape[{int(op.batched) if op.layout == 'channels_first' else len(op.input_shape) - 1}]"
    if channels != expected:
        raise InvalidConvolution(
            f"input has {channels} channels, but weight {op.weight_shape} with groups={op.groups}"
            f"{' and transposed=True' if op.transposed else ''} expects {expected}",
            axis,
        )
    if first % op.groups:
        what = "input" if op.transposed else "output"
        raise InvalidConvolution(
            f"groups is {op.groups}, which does not divide the {first} {what} channels of weight {op.weight_shape}",
            "groups",
        )
    if bias is not None and bias.shape != (op.out_channels,):
        raise InvalidConvolution(
            f"bias has shape {bias.shape}, but there are {op.out_channels} output channels", "bias.shape"
        )


def _check_batch_groups(op: Operation) -> None:
    parts = op.batch_groups
    if parts == 1:
        return
    if op.groups != 1 or not op.batched:
        wrong = f"groups={op.groups}" if op.groups != 1 else f"the unbatched input {op.input_shape}"
        raise InvalidConvolution(f"batch_groups is {parts}, which does not go with {wrong}", "batch_groups")
    for what, count in (("input's items", op.canonical_input[0]), ("output channels", op.out_channels)):
        if count % parts:
            raise InvalidConvolution(
                f"batch_groups is {parts}, which does not divide the {count} {what}", "batch_groups"
            )


def _output_dtype(given: Mapping[str, Any], dtype: str) -> dtypes.DTypeName:
    wanted, own = dtypes.named(given.get("output_dtype", dtype), "output_dtype"), dtypes.named(dtype)
    if not dtypes.is_wider(wanted, own):
        raise InvalidConvolution(f"output_dtype is {wanted.name}, which does not hold every {own.name}", "output_dtype")
    return wanted.name


def _padding_value(given: Mapping[str, Any], dtype: str) -> float:
    value = float(given.get("padding_value", 0.0))
    if value and given.get("padding_mode") != "constant":
        raise InvalidConvolution(
            f"padding_value is {value}; it goes with padding_mode='constant' alone", "padding_value"
        )
    if not dtypes.holds(dtypes.named(dtype), value):
        raise InvalidConvolution(f"padding_value is {value}, which {dtype} does not hold exactly", "padding_value")
    return value


def _activation(given: Mapping[str, Any], dtype: str) -> Activation:
    activation: Activation = word(given, "activation", Activation, "none")
    row = dtypes.named(dtype)
    allowed = ("none", "relu") if row.exact else ("none",) if row.kind == "complex" else get_args(Activation)
    if activation not in allowed:
        raise InvalidConvolution(f"activation is {activation!r}; {dtype} takes {' or '.join(allowed)}", "activation")
    return activation
