"""`convolver plan`: what a convolution, or a stack of layers, would be and cost, from shapes alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from convolver.client.cli import _numbers, _options, _plan_stack, _tables
from convolver.client.cli._options import open_client
from convolver.client.pictures._choices import PaddingMode

if TYPE_CHECKING:
    from convolver.core.parameters import Parameters, StackParameters
    from convolver.core.plan import Plan

Stack = Annotated[
    Path | None, typer.Argument(metavar="STACK", help="A stack of layers, .toml or .json; else --input and --weight.")
]
Input = Annotated[str | None, typer.Option("--input", metavar="SHAPE", help="N,C,H,W (or C,H,W), also as 1x3x224x224.")]
Weight = Annotated[
    str | None, typer.Option("--weight", metavar="SHAPE", help="O,C/groups,KH,KW; transposed C,O/groups,KH,KW.")
]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="The stack's weights, .safetensors or .npz.")
]
PerDimension = Annotated[str, typer.Option(metavar="N[,N...]", help="One number, or one for each dimension.")]
Padding = Annotated[str, typer.Option(help="valid, same, same_lower, full, causal; 3; 1,2; begin:end as in 0:1,2:2.")]
OutputSize = Annotated[str | None, typer.Option(metavar="N[,N...]", help="The size to reach; transposed alone.")]
Groups = Annotated[int, typer.Option(help="Groups of channels.")]
Mode = Annotated[PaddingMode, typer.Option(help="What lies beyond the edge.")]
DType = Annotated[
    str | None,
    typer.Option("--dtype", help="The type of all tensors: float32 (the default, or what the stack says), int8..."),
]
Bias = Annotated[bool, typer.Option("--bias", help="With a bias.")]
Transposed = Annotated[bool, typer.Option("--transposed", help="The transposed convolution.")]
Algorithm = Annotated[Literal["auto", "direct", "fft"], typer.Option(help="How it is computed.")]
Backend = Annotated[str, typer.Option(help="Who computes: auto, reference, torch, torch:cuda...")]


_OF_ONE = (
    "weight",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
    "transposed",
    "output_padding",
    "output_size",
    "bias",
)


class WrongUsage(typer.TyperException):
    """Options that do not go together, or lack one."""

    exit_code = 2


def plan(  # noqa: PLR0913  # a command's options are its arguments
    context: typer.Context,
    stack: Stack = None,
    *,
    input: Input = None,
    weight: Weight = None,
    stride: PerDimension = "1",
    padding: Padding = "0",
    dilation: PerDimension = "1",
    groups: Groups = 1,
    padding_mode: Mode = "zeros",
    transposed: Transposed = False,
    output_padding: PerDimension = "0",
    output_size: OutputSize = None,
    bias: Bias = False,
    weights: Weights = None,
    dtype: DType = None,
    algorithm: Algorithm = "auto",
    backend: Backend = "auto",
    as_json: _options.AsJson = False,
    address: _options.Address = None,
    timeout: _options.Timeout = 60.0,
) -> None:
    """Say what a convolution, or each layer of a stack, would be and cost: shapes, resolved padding,
    multiply-accumulates, bytes, receptive fields, back end.
    """
    _check_usage(context)
    how: StackParameters = {"algorithm": algorithm, "backend": backend}
    if stack is not None:
        _plan_stack.plan_stack(stack, weights, input, dtype, how, address, timeout, as_json=as_json)
        return
    shapes = _numbers.shape(input or "", "--input"), _numbers.shape(weight or "", "--weight")
    numbers = _sizes(stride=stride, dilation=dilation, output_padding=output_padding, output_size=output_size)
    words: Parameters = {"groups": groups, "padding_mode": padding_mode, "transposed": transposed}
    parameters: Parameters = {**numbers, **words, **how, "padding": _numbers.padding(padding, "--padding")}
    with open_client(address, timeout) as client:
        plan = client.plan(*shapes, dtype or "float32", bias=bias, **parameters)
    _tables.show(_told(plan), as_json=as_json)


def _check_usage(context: typer.Context) -> None:
    """Raises WrongUsage unless there is a stack, or the input and weight of one convolution."""
    given = {name for name in context.params if _is_given(context, name)}
    is_stack = "stack" in given
    wrong = given.intersection(_OF_ONE) if is_stack else given & {"weights"}
    for name in sorted(wrong):
        why = "the layers of a stack have their own" if is_stack else "it goes with a stack"
        raise WrongUsage(f"Option '--{name.replace('_', '-')}': {why}.")
    for name in ("input", "weight"):
        if not is_stack and name not in given:
            raise WrongUsage(f"Missing option '--{name}'.")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _sizes(**texts: str | None) -> Parameters:
    """The options that are one number, or one for each dimension."""
    given = {name: text for name, text in texts.items() if text is not None}
    sizes = {name: _numbers.sizes(text, f"--{name.replace('_', '-')}") for name, text in given.items()}
    return cast("Parameters", sizes)


def _told(plan: Plan) -> dict[str, Any]:
    operation = plan.operation
    return {
        "input": operation.input_shape,
        "weight": operation.weight_shape,
        "output": plan.output_shape,
        "dtype": operation.dtype,
        **plan.parameters,
        "threads": plan.threads,
        "macs": plan.macs,
        "work": plan.work,
        "input_bytes": plan.input_bytes,
        "output_bytes": plan.output_bytes,
        "workspace_bytes": plan.workspace_bytes,
    }
