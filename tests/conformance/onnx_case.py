"""ONNX's Conv and ConvTranspose in this service's words, and the cases that the onnx package brings.

https://onnx.ai/onnx/operators/onnx__Conv.html and onnx__ConvTranspose.html are the source of every rule here.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.backend.test.case import node as node_cases
from onnx.backend.test.loader import load_model_tests
from onnx.reference.op_run import OpRun
from tests.conformance.served import Served

Array = NDArray[Any]
Attributes = Mapping[str, Any]

SERVED = frozenset({"Conv", "ConvTranspose"})
NOT_SERVED_YET = frozenset({"CausalConvWithState", "ConvInteger", "DeformConv", "QLinearConv"})

_WORDS = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower", "VALID": "valid"}


class Case(NamedTuple):
    """One of ONNX's cases: a model, and inputs with the outputs they must give, within ONNX's own tolerance."""

    name: str
    model: onnx.ModelProto
    data_sets: Sequence[tuple[Sequence[Array], Sequence[Array]]]
    rtol: float
    atol: float

    @property
    def operators(self) -> frozenset[str]:
        """Those in its graph that convolve."""
        return frozenset(node.op_type for node in self.model.graph.node) & (SERVED | NOT_SERVED_YET)


class Convolution(NamedTuple):
    """One node with its tensors, as `Client.run` takes them."""

    input: Array
    weight: Array
    bias: Array | None
    parameters: dict[str, Any]


def from_nodes() -> list[Case]:
    """The cases of onnx's node tests whose graphs convolve: single nodes, and functions written out as graphs."""
    for module in pkgutil.iter_modules(node_cases.__path__):
        if "conv" in module.name:  # all would be 1,900 cases in 6 s
            importlib.import_module(f"{node_cases.__name__}.{module.name}")
    made = [Case(c.name, c.model, c.data_sets, c.rtol, c.atol) for c in node_cases._NodeTestCases]  # noqa: SLF001 - load_model_tests(kind="node") gives the same list, of all modules
    return [case for case in made if case.operators]


def from_files() -> list[Case]:
    """The cases of onnx's data files, which PyTorch's exporter once made, whose graphs convolve."""
    cases = []
    for kind in ("pytorch-converted", "pytorch-operator"):
        for test in load_model_tests(kind=kind):
            assert test.model_dir, test.name
            folder = Path(test.model_dir)
            model = onnx.load(folder / "model.onnx")
            data_sets = [(_tensors(data, "input"), _tensors(data, "output")) for data in folder.glob("test_data_set_*")]
            cases.append(Case(test.name, model, data_sets, test.rtol, test.atol))
    return sorted((case for case in cases if case.operators), key=lambda case: case.name)


def convolutions(case: Case) -> Iterator[tuple[Convolution, Array]]:
    """Each data set of a case whose graph is one Conv or ConvTranspose, with its output."""
    (node,) = case.model.graph.node
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    weights = {each.name: onnx.numpy_helper.to_array(each) for each in case.model.graph.initializer}
    fed = [each.name for each in case.model.graph.input if each.name not in weights]
    for inputs, (output,) in case.data_sets:
        arrays = weights | dict(zip(fed, inputs, strict=True))
        yield convolution(node.op_type, attributes, *(arrays[name] for name in node.input)), output


def convolution(operator: str, attributes: Attributes, x: Array, w: Array, b: Array | None = None) -> Convolution:
    """A node of ONNX in this service's words."""
    given = {name: value for name, value in attributes.items() if value is not None}
    assert tuple(given.get("kernel_shape", w.shape[2:])) == w.shape[2:]
    parameters = {
        "stride": tuple(given.get("strides", [1] * (w.ndim - 2))),
        "dilation": tuple(given.get("dilations", [1] * (w.ndim - 2))),
        "groups": given.get("group", 1),
    }
    placed = _padding(given, w) if operator == "Conv" else _transposed_padding(given, parameters, x, w)
    return Convolution(x, w, b, parameters | placed)


def operators(served: Served) -> list[type[OpRun]]:
    """Conv and ConvTranspose for ONNX's ReferenceEvaluator, computed by the service."""

    class Conv(OpRun):
        def _run(self, *arrays: Array, **attributes: Any) -> tuple[Array]:  # noqa: ANN401 - as ONNX has them
            return (_run(served, convolution("Conv", attributes, *arrays)),)

    class ConvTranspose(OpRun):
        def _run(self, *arrays: Array, **attributes: Any) -> tuple[Array]:  # noqa: ANN401 - as ONNX has them
            return (_run(served, convolution("ConvTranspose", attributes, *arrays)),)

    return [Conv, ConvTranspose]


def _run(served: Served, case: Convolution) -> Array:
    output: Array = served.run(case.input, case.weight, case.bias, **case.parameters).output
    return output


def _tensors(folder: Path, what: str) -> list[Array]:
    files = sorted(folder.glob(f"{what}_*.pb"), key=lambda file: int(file.stem.removeprefix(f"{what}_")))
    return [onnx.numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]


def _auto_pad(given: Attributes) -> str:
    word = given.get("auto_pad", "NOTSET")
    return word.decode() if isinstance(word, bytes) else word


def _padding(given: Attributes, w: Array) -> dict[str, Any]:
    """`pads` holds all begins, then all ends."""
    word = _WORDS.get(_auto_pad(given))
    pads = given.get("pads", [0] * 2 * (w.ndim - 2))
    return {"padding": word or _pairs(pads)}


def _pairs(pads: Sequence[int]) -> list[tuple[int, int]]:
    half = len(pads) // 2
    return list(zip(pads[:half], pads[half:], strict=True))


def _transposed_padding(given: Attributes, parameters: Attributes, x: Array, w: Array) -> dict[str, Any]:
    """`output_shape`, or a word with output_padding, makes the padding: total_padding = strides*(input-1) +
    output_padding + (kernel-1)*dilations + 1 - output_shape, the odd one at the end for SAME_UPPER alone.
    """
    extra, word = tuple(given.get("output_padding", [0] * (w.ndim - 2))), _WORDS.get(_auto_pad(given))
    made = {"transposed": True, "output_padding": extra}
    if "output_shape" not in given and (word == "valid" or not (word and any(extra))):
        return made | _padding(given, w)
    i, s, d, k = (np.array(each) for each in (x.shape[2:], parameters["stride"], parameters["dilation"], w.shape[2:]))
    total = s * (i - 1) + np.array(extra) + (k - 1) * d + 1 - np.array(given.get("output_shape", i * s))
    begin = total // 2 if word == "same" else total - total // 2
    return made | {"padding": [(int(b), int(t - b)) for b, t in zip(begin, total, strict=True)]}
