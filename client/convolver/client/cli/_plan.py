"""`convolver plan`: what a convolution would be and cost, from shapes alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from convolver.client.cli import _numbers, _options
from convolver.client.cli._options import open_client
from convolver.client.pictures._choices import PaddingMode

if TYPE_CHECKING:
    from convolver.core.parameters import Parameters
    from convolver.core.plan import Plan

Input = Annotated[str, typer.Option("--input", metavar="SHAPE", help="N,C,H,W (or C,H,W), also as 1x3x224x224.")]
Weight = Annotated[
    str, typer.Option("--weight", metavar="SHAPE", help="O,C/groups,KH,KW; transposed C,O/groups,KH,KW.")
]
PerDimension = Annotated[str, typer.Option(metavar="N[,N...]", help="One number, or one for each dimension.")]
Padding = Annotated[str, typer.Option(help="valid, same, same_lower, full, causal; 3; 1,2; begin:end as in 0:1,2:2.")]
OutputSize = Annotated[str | None, typer.Option(metavar="N[,N...]", help="The size to reach; transposed alone.")]
Groups = Annotated[int, typer.Option(help="Groups of channels.")]
Mode = Annotated[PaddingMode, typer.Option(help="What lies beyond the edge.")]
DType = Annotated[str, typer.Option("--dtype", help="The type of all tensors: float32, float16, int8, complex64...")]
Bias = Annotated[bool, typer.Option("--bias", help="With a bias.")]
Transposed = Annotated[bool, typer.Option("--transposed", help="The transposed convolution.")]
Algorithm = Annotated[Literal["auto", "direct", "fft"], typer.Option(help="How it is computed.")]
Backend = Annotated[str, typer.Option(help="Who computes: auto, reference, torch, torch:cuda...")]


def plan(  # noqa: PLR0913  # a command's options are its arguments
    *,
    input: Input,
    weight: Weight,
    stride: PerDimension = "1",
    padding: Padding = "0",
    dilation: PerDimension = "1",
    groups: Groups = 1,
    padding_mode: Mode = "zeros",
    transposed: Transposed = False,
    output_padding: PerDimension = "0",
    output_size: OutputSize = None,
    bias: Bias = False,
    dtype: DType = "float32",
    algorithm: Algorithm = "auto",
    backend: Backend = "auto",
    as_json: _options.AsJson = False,
    address: _options.Address = None,
    timeout: _options.Timeout = 60.0,
) -> None:
    """Say what a convolution would be and cost: shapes, resolved padding, multiply-accumulates, bytes, back end."""
    shapes = _numbers.shape(input, "--input"), _numbers.shape(weight, "--weight")
    parameters: Parameters = {
        "stride": _numbers.sizes(stride, "--stride"),
        "padding": _numbers.padding(padding, "--padding"),
        "dilation": _numbers.sizes(dilation, "--dilation"),
        "groups": groups,
        "padding_mode": padding_mode,
        "transposed": transposed,
        "output_padding": _numbers.sizes(output_padding, "--output-padding"),
        "output_size": None if output_size is None else _numbers.sizes(output_size, "--output-size"),
        "algorithm": algorithm,
        "backend": backend,
    }
    with open_client(address, timeout) as client:
        told = _told(client.plan(*shapes, dtype, bias=bias, **parameters))
    _print(told, as_json=as_json)


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


def _print(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", show_header=False)
    for name, value in told.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    Console(markup=False).print(table)
