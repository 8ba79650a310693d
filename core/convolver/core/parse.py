"""From what a caller writes to an Operation: scalars are spread, words become numbers, every rule that shapes can
decide is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

from convolver.core import dtypes, padding
from convolver.core.errors import InvalidConvolution, shown
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
from convolver.core.values import flag, number, per_dimension, real, word


def parse(input: Tensor, weight: Tensor, bias: Tensor | None, parameters: Parameters) -> Operation:
    """The operation that these headers and parameters describe.

    `input` is (N, C, *S) or (C, *S), `weight` (O, C/groups, *K), transposed (C, O/groups, *K), `bias` (O,); see
    `layout` for the other order. Raises InvalidConvolution naming the field, the rule and the numbers.
    """
    given = _without_none(parameters)
    _check_names(given)
    input, weight = _whole(input, "input"), _whole(weight, "weight")
    bias = None if bias is None else _whole(bias, "bias")
    _check_tensors(input, weight, bias)
    ndim = len(weight.shape) - 2
    spread = partial(per_dimension, ndim=ndim)
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
        transposed=flag(given, "transposed"),
        output_padding=(0,) * ndim,
        flip=flag(given, "flip"),
        layout=word(given, "layout", Layout, "channels_first"),
        activation=_activation(given, input.dtype),
        overflow=word(given, "overflow", Overflow, "error"),
    )
    _check_direction(bare, given)
    _check_channels(bare, bias)
    _check_batch_groups(bare)
    return padding.padded(bare, given)


def parse_execution(parameters: ExecutionParameters) -> Execution:
    """How to execute. Raises InvalidConvolution for a word that is not one."""
    given = _without_none(parameters)
    backend = given.get("backend") or "auto"
    if not isinstance(backend, str):
        raise InvalidConvolution(
            f"backend is {shown(backend)}; it must be a name such as 'auto', 'reference' or 'torch'", "backend"
        )
    return Execution(
        precision=word(given, "precision", Precision, "highest"),
        algorithm=word(given, "algorithm", Algorithm, "auto"),
        backend=backend[:200],
        deterministic=flag(given, "deterministic"),
        priority=word(given, "priority", Priority, "interactive"),
    )


def _without_none(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}


def _check_names(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in Parameters.__annotations__:
            raise InvalidConvolution(
                f"{shown(name)} is no parameter; there are {', '.join(Parameters.__annotations__)}", str(name)[:80]
            )


def _whole(tensor: Tensor, name: str) -> Tensor:
    """The header with Python's integers, which do not overflow as NumPy's do."""
    dtype = dtypes.named(tensor.dtype, f"{name}.dtype").name
    return Tensor(dtype, tuple(number(size, f"{name}.shape[{i}]", low=0) for i, size in enumerate(tensor.shape)))


def _check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
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


def _check_direction(op: Operation, given: Mapping[str, Any]) -> None:
    """What goes with one direction alone."""
    if op.transposed:
        forward_only: dict[str, tuple[object, object]] = {
            "input_dilation": (op.input_dilation, 1),
            "batch_groups": (op.batch_groups, 1),
            "padding_mode": (op.padding_mode, "zeros"),
        }
        for field, (value, default) in forward_only.items():
            if value not in (default, (default,) * op.ndim):
                raise InvalidConvolution(f"{field} is {value!r}; with transposed=True it must be {default!r}", field)
        return
    extra = any(per_dimension(given.get("output_padding", 0), op.ndim, "output_padding"))
    for field in ("output_padding",) * extra + ("output_size",) * ("output_size" in given):
        raise InvalidConvolution(f"{field} is {shown(given[field])}; it goes with transposed=True alone", field)


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
    value = real(given.get("padding_value", 0.0), "padding_value")
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
