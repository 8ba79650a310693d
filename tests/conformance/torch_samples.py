"""torch's own samples of its convolutions, with what torch makes of them in the widest type: written to a file.

    python -m tests.conformance.torch_samples FILE

A process of its own, because importing torch.testing._internal changes the process that does it: hypothesis' profile,
torch's flags, TorchScript's functions.
"""

from __future__ import annotations

import itertools
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]
"""function (conv1d ... conv_transpose3d), dtype, input, weight, bias, parameters (the SDK's), and `expected` or the
`message` of torch's refusal.
"""

WIDE = {torch.int64: torch.int64, torch.complex64: torch.complex128, torch.complex128: torch.complex128}
MODES = ("zeros", "reflect", "replicate", "circular")
PREFIX = "nn.functional."


def operators() -> list[Any]:
    """The entries of op_db that convolve."""
    everything = import_module("torch.testing._internal.common_methods_invocations").op_db  # untyped, and 27,000 lines
    return [op for op in everything if "conv" in op.name]


def modules() -> list[Any]:
    """The entries of module_db that convolve."""
    everything = import_module("torch.testing._internal.common_modules").module_db
    return [info for info in everything if "Conv" in info.name]


def of_functions() -> Iterator[Record]:
    """The samples of op_db, in each type that torch says it takes."""
    for op in operators():
        for dtype in op.dtypes:
            for sample in op.sample_inputs("cpu", dtype, requires_grad=False):
                record = _called(op, sample)
                tensors = [_wide(record[name]) for name in ("input", "weight", "bias")]
                yield {**record, "expected": op.op(*tensors, **record["parameters"])}


def refusals_of_functions() -> Iterator[Record]:
    """The error inputs of op_db, with what torch says of them."""
    for op in operators():
        for error in op.error_inputs("cpu") if op.error_inputs_func else ():
            record = _called(op, error.sample_input)
            try:
                op.op(record["input"], record["weight"], record["bias"], **record["parameters"])
            except error.error_type as refusal:
                yield {**record, "message": str(refusal)}


def of_modules() -> Iterator[Record]:
    """The samples of module_db; complex32 is no type of the service."""
    for info in modules():
        for dtype in set(info.dtypes) - {torch.complex32}:
            for sample in info.module_inputs_func(info, "cpu", dtype, requires_grad=False, training=False):
                made, fed = sample.constructor_input, sample.forward_input
                module = info.module_cls(*made.args, **made.kwargs, dtype=dtype)
                module(*fed.args)  # a lazy one takes its shape from the first input
                yield _run(module, dtype, *fed.args)


def of_padding_modes() -> Iterator[Record]:
    """nn.Conv1d to nn.Conv3d in all their padding modes, which module_db has no samples of."""
    for n, mode, padding, stride in itertools.product((1, 2, 3), MODES, (1, 2, "same"), (1, 2)):
        if padding != "same" or stride == 1:
            module = getattr(torch.nn, f"Conv{n}d")(
                2, 3, 4, stride, padding, dilation=1 + (n < 3), padding_mode=mode, dtype=torch.float64
            )
            yield _run(module, torch.float64, torch.randn(2, 2, *range(8 - n, 8), dtype=torch.float64))


def of_output_sizes() -> Iterator[Record]:
    """nn.ConvTranspose1d to nn.ConvTranspose3d asked for every output size there is, and for one more at each end."""
    for n, size in itertools.product((1, 2, 3), range(9, 14)):
        module = getattr(torch.nn, f"ConvTranspose{n}d")(2, 3, 3, stride=3, padding=1, dtype=torch.float64)
        x = torch.randn(2, 2, *(4,) * n, dtype=torch.float64)
        wanted = {**_settings(module), "output_size": [size] * n}
        try:
            yield _run(module, torch.float64, x, wanted, output_size=[size] * n)
        except ValueError as refusal:
            yield {**_record(module, torch.float64, x, wanted), "message": str(refusal)}


def _called(op: Any, sample: Any) -> Record:  # noqa: ANN401 - OpInfo and SampleInput, untyped
    weight, bias = sample.args
    return {
        "function": op.name.removeprefix(PREFIX),
        "dtype": _name(sample.input.dtype),
        "input": sample.input,
        "weight": weight,
        "bias": bias,
        "parameters": sample.kwargs,
    }


def _run(module: Any, dtype: torch.dtype, x: torch.Tensor, wanted: Record | None = None, **more: Any) -> Record:  # noqa: ANN401 - nn.Conv1d ... and what their forward takes
    record = _record(module, dtype, x, _settings(module) if wanted is None else wanted)
    with torch.no_grad():
        return {**record, "expected": module.to(_wide(x).dtype)(_wide(x), **more)}


def _record(module: Any, dtype: torch.dtype, x: torch.Tensor, parameters: Record) -> Record:  # noqa: ANN401 - nn.Conv1d ...
    n = len(module.kernel_size)
    tensors = {"input": x, "weight": module.weight.detach().clone(), "bias": module.bias.detach().clone()}
    function = f"conv_transpose{n}d" if module.transposed else f"conv{n}d"
    return {"function": function, "dtype": _name(dtype), **tensors, "parameters": parameters}


def _settings(module: Any) -> Record:  # noqa: ANN401 - nn.Conv1d ...
    names = ["stride", "padding", "dilation", "groups", "output_padding" if module.transposed else "padding_mode"]
    return {name: getattr(module, name) for name in names}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _wide(tensor: torch.Tensor | None) -> Any:  # noqa: ANN401 - a tensor, or None as it came
    return None if tensor is None else tensor.to(WIDE.get(tensor.dtype, torch.float64))


def main(path: Path) -> None:
    """Writes all records, and what the databases hold."""
    warnings.simplefilter("ignore")  # torch's own, about complex32 and lazy modules
    torch.manual_seed(0)
    torch.set_num_threads(1)  # for tensors as small as these, threads only wait for one another
    torch.save(
        {
            "operators": {op.name.removeprefix(PREFIX): sorted(map(_name, op.dtypes)) for op in operators()},
            "modules": [info.name.removeprefix("nn.") for info in modules()],
            "functions": [*of_functions()],
            "of_modules": [*of_modules(), *of_padding_modes()],
            "output_sizes": [*of_output_sizes()],
            "refusals": [*refusals_of_functions()],
        },
        path,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
