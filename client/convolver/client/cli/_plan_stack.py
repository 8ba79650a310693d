"""`convolver plan STACK`: what each layer of a stack would be and cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from convolver.client.cli import _numbers, _tables
from convolver.client.cli._options import open_client

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from convolver.core.parameters import StackParameters
    from convolver.core.receptive import ReceptiveField
    from convolver.core.stack_plan import LayerPlan, StackPlan


def plan_stack(
    file: Path,
    weights: Path | None,
    input: str | None,
    dtype: str | None,
    how: StackParameters,
    address: str | None,
    timeout: float,
    *,
    as_json: bool,
) -> None:
    """Print the plan of a stack, of an input or dtype other than the file's where these are given."""
    from convolver.client._stack_files import load_stack

    shape = None if input is None else _numbers.shape(input, "--input")
    described = load_stack(file, weights)
    with open_client(address, timeout) as client:
        plan = client.stack(described.layers, **how).plan(shape or described.input, dtype or described.dtype)
    layers = list(map(_layer, range(len(plan.layers)), plan.layers, plan.receptive_fields))
    if as_json:
        typer.echo(json.dumps({**_totals(plan), "layers": layers}))
        return
    _tables.show_rows(list(map(_row, layers)))
    _tables.show({name: _brief(value) for name, value in _totals(plan).items()}, as_json=False)


def _totals(plan: StackPlan) -> dict[str, Any]:
    return {
        "input": plan.input.shape,
        "output": plan.output.shape,
        "dtype": plan.dtype,
        "parameter_count": plan.parameter_count,
        "macs": plan.macs,
        "work": plan.work,
        "input_bytes": plan.input_bytes,
        "output_bytes": plan.output_bytes,
        "workspace_bytes": plan.workspace_bytes,
    }


def _layer(index: int, layer: LayerPlan, fields: Sequence[ReceptiveField]) -> dict[str, Any]:
    from convolver.core.stack_plan import PoolingPlan, tensor_bytes

    kind, weight, words = "conv", None, dict[str, Any]()
    if isinstance(layer, PoolingPlan):
        pooling = layer.pooling
        kind = pooling.kind
        words = {name: getattr(pooling, name) for name in ("kernel", "stride", "padding", "dilation", "output_size")}
    else:
        weight, words = layer.operation.weight_shape, layer.parameters
    return {
        "index": index,
        "kind": kind,
        "weight": weight,
        "input": layer.input.shape,
        "output": layer.output.shape,
        **words,
        "parameter_count": layer.parameter_count,
        "macs": layer.macs,
        "work": layer.work,
        "activation_bytes": tensor_bytes(layer.output),
        "workspace_bytes": layer.workspace_bytes,
        "receptive_field": [field.size for field in fields],
        "jump": [field.doubles[1] for field in fields],
        "start": [field.doubles[2] for field in fields],
        "backend": layer.backend,
    }


def _row(layer: dict[str, Any]) -> dict[str, Any]:
    """What a line of the table shows; what is equal in all dimensions is one number."""
    return {
        "": layer["index"],
        "kind": layer["kind"],
        "weight": _brief(layer["weight"] or ""),
        "output": _brief(layer["output"]),
        "parameters": layer["parameter_count"],
        "MACs": layer["macs"],
        "bytes": layer["activation_bytes"],
        "field": _collapsed(layer["receptive_field"]),
        "jump": _collapsed(layer["jump"]),
        "start": _collapsed(layer["start"]),
        "back end": layer["backend"],
    }


def _brief(value: object) -> object:
    """A shape as the command line takes it: 1x3x224x224."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


def _collapsed(values: Sequence[int | float]) -> str:
    texts = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)
