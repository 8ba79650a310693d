"""Stacks in files: what is read, and where refusals say that it is wrong."""

from __future__ import annotations

import json
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client.weight_files import one, safetensors

from convolver.client._stack_files import LARGEST_FILE, StackFile, load_stack
from convolver.client._stack_layers import Conv, Pool
from convolver.client.errors import WeightsError
from convolver.core.errors import InvalidConvolution
from convolver.core.operation import Tensor
from convolver.core.parameters import LayerParameters
from convolver.core.stack import ConvolutionLayer, parse_stack

if TYPE_CHECKING:
    from convolver.client import Client
    from convolver.core.dtypes import DTypeName
    from convolver.core.parameters import Parameters
    from convolver.core.stack import Layer, Step

TOML = """
input = [1, 3, 32, 32]
dtype = "float64"

[[layers]]
kind = "conv"
weight = [16, 3, 3, 3]
bias = true
stride = 2
padding = [[1, 2], [0, 1]]
activation = "relu"

[[layers]]
kind = "max"
kernel = 2
stride = [1, 2]

[[layers]]
kind = "adaptive_average"
output_size = 1
"""


def written(folder: Path, told: object, name: str = "stack.json") -> Path:
    path = folder / name
    path.write_text(told if isinstance(told, str) else json.dumps(told))
    return path


def stack(*layers: dict[str, Any], **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    return {"input": [1, 3, 8, 8], "layers": list(layers), **more}


def steps(read: StackFile) -> tuple[Step, ...]:
    """The layers as the core understands them."""
    return parse_stack(Tensor(read.dtype, read.input), [described(layer, read.dtype) for layer in read.layers], {})


def described(layer: Conv | Pool, dtype: DTypeName) -> Layer:
    if isinstance(layer, Pool):
        return layer.parameters
    shape = layer.weight if layer.is_shape else layer.weight.shape
    return ConvolutionLayer(Tensor(dtype, shape), None, cast("Parameters", layer.parameters))


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    by_toml = load_stack(written(tmp_path, TOML, "stack.toml"))
    by_json = load_stack(str(written(tmp_path, tomllib.loads(TOML))))
    assert (by_toml.input, by_toml.dtype) == ((1, 3, 32, 32), "float64")
    assert repr(by_toml) == repr(by_json)
    conv, pool, last = by_toml.layers
    assert isinstance(conv, Conv)
    assert (conv.weight, conv.bias) == ((16, 3, 3, 3), True)
    assert conv.parameters == {"stride": 2, "padding": [[1, 2], [0, 1]], "activation": "relu"}
    assert (pool, last) == (Pool("max", 2, stride=[1, 2]), Pool("adaptive_average", output_size=1))
    assert [step.output.shape for step in steps(by_toml)] == [(1, 16, 17, 16), (1, 16, 16, 8), (1, 16, 1, 1)]


def test_weights_are_tensors_of_the_file_beside_it(tmp_path: Path) -> None:
    arrays = {"first.weight": np.ones((2, 3, 1, 1), np.float32), "first.bias": np.ones(2, np.float32)}
    np.savez(tmp_path / "w.npz", **arrays)  # type: ignore[arg-type]  # NumPy's stub takes the arrays for allow_pickle
    layers = (
        {"kind": "conv", "weight": "first.weight", "bias": "first.bias"},
        {"kind": "conv", "weight": "first.weight"},
    )
    read = load_stack(written(tmp_path, stack(*layers, weights="w.npz")))
    first, second = read.layers
    assert isinstance(first, Conv)
    assert isinstance(second, Conv)
    np.testing.assert_array_equal(first.weight, arrays["first.weight"])
    np.testing.assert_array_equal(first.bias, arrays["first.bias"])
    assert (second.bias, read.dtype) == (None, "float32")


def test_another_file_of_weights_may_be_given(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", w=np.full((2, 3, 1), 7.0))
    path = written(tmp_path, stack({"kind": "conv", "weight": "w", "bias": False}, weights="missing.npz"))
    with pytest.raises(WeightsError, match=r"missing\.npz: No such file"):
        load_stack(path)
    (layer,) = load_stack(path, tmp_path / "other.npz").layers
    assert isinstance(layer, Conv)
    assert layer.weight[0, 0, 0] == 7


def test_a_stack_from_files_runs(client: Client, tmp_path: Path) -> None:
    weight, bias = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), np.arange(2, dtype=np.float32)
    entries = {"odd name": one("F32", [2, 3, 2, 2], 0, 96), "b": one("F32", [2], 96, 104)}
    content = safetensors(entries, weight.tobytes() + bias.tobytes())
    assert len(content) % 4, "the data is not aligned"
    (tmp_path / "w.safetensors").write_bytes(content)
    conv = {"kind": "conv", "weight": "odd name", "bias": "b", "padding": [[0, 1], [1, 0]], "activation": "relu"}
    pool = {"kind": "max", "kernel": 2, "stride": 1}
    read = load_stack(written(tmp_path, stack(conv, pool, weights="w.safetensors")))
    x = np.random.default_rng(0).integers(-9, 9, read.input).astype(read.dtype)
    convolved = client.conv2d(x, weight, bias, padding=[(0, 1), (1, 0)], activation="relu")
    expected = np.lib.stride_tricks.sliding_window_view(convolved, (2, 2), (2, 3)).max((4, 5))
    np.testing.assert_array_equal(client.stack(read.layers)(x), expected)


CONV = {"kind": "conv", "weight": [2, 3, 3, 3]}


@pytest.mark.parametrize(
    ("told", "field", "complaint"),
    [
        ("[1]", "", "holds [1], not an object with input, dtype, weights, layers"),
        ("{", "", "is no JSON: "),
        ("[" * 10**5, "", "is no JSON: "),
        ('{"input": [], "input": []}', "", "a name is there twice"),
        ({"layers": [CONV]}, "input", "input is missing"),
        ({"input": [1]}, "layers", "layers is missing"),
        (stack(CONV, layer=3), "layer", "layer is not known; did you mean layers?"),
        (stack(CONV, input=3), "input", "input is 3; it must be a shape, which is a list"),
        (stack(CONV, input=[1, "3"]), "input[1]", "input[1] is '3'; it must be an integer"),
        (stack(CONV, dtype="float31"), "dtype", "dtype is 'float31', which is none of bool"),
        (stack(CONV, dtype=3), "dtype", "dtype is 3; it must be a word"),
        (stack(CONV, weights=[]), "weights", "weights is []; it must be a word"),
        (stack(), "layers", "layers has 0 entries, not 1 to 1024"),
        (stack(*[CONV] * 1025), "layers", "layers has 1025 entries"),
        (stack(CONV, 3), "layers[1]", "layers[1] is 3, not a table"),  # type: ignore[arg-type]  # wrong on purpose
        (stack(CONV, {"kernel": 2}), "layers[1].kind", "layers[1].kind is missing; there are conv, max, average"),
        (stack({"kind": "avg"}), "layers[0].kind", "layers[0].kind is 'avg'; did you mean average"),
        (stack({"kind": []}), "layers[0].kind", "layers[0].kind is []; there are conv"),
        (stack({"kind": "conv"}), "layers[0].weight", "layers[0].weight is missing"),
        (stack(CONV, CONV | {"strid": 2}), "layers[1].strid", "layers[1].strid is not known; did you mean stride?"),
        (stack(CONV | {"kernel": 2}), "layers[0].kernel", "layers[0].kernel is not known"),
        (stack({"kind": "max", "weight": 2}), "layers[0].weight", "layers[0].weight is not known"),
        (stack(CONV | {"stride": "2"}), "layers[0].stride", "stride is '2'; it must be an integer or a list"),
        (stack(CONV | {"stride": True}), "layers[0].stride", "stride is True; it must be an integer or a list"),
        (stack(CONV | {"groups": None}), "layers[0].groups", "groups is None; it must be an integer"),
        (stack(CONV | {"flip": 1}), "layers[0].flip", "flip is 1; it must be true or false"),
        (
            stack(CONV | {"weight": [2, -1, 3]}),
            "layers[0].weight.shape[1]",
            "weight.shape[1] is -1; it must be at least",
        ),
        (
            stack(CONV | {"weight": 3}),
            "layers[0].weight",
            "weight is 3; it must be a shape, which is a list, or the name",
        ),
        (stack(CONV | {"bias": "b"}), "layers[0].bias", "bias is a str; beside a weight's shape it must be True or"),
        (stack(CONV | {"weight": "w"}), "layers[0].weight", "'w', which is no tensor of the weights; name a file"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_field(tmp_path: Path, told: object, field: str, complaint: str) -> None:
    path = written(tmp_path, told)
    with pytest.raises(InvalidConvolution) as refused:
        load_stack(path)
    assert complaint in refused.value.message
    assert refused.value.message.startswith(f"{path}: ")
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("table", "field", "complaint"),
    [
        (
            {"weight": "con1.weight"},
            "weight",
            "is 'con1.weight', which is no tensor of the weights; did you mean conv1.",
        ),
        (
            {"weight": "conv1.weight", "bias": "x"},
            "bias",
            "is 'x', which is no tensor of the weights; there are conv1.",
        ),
        (
            {"weight": "conv1.weight", "bias": True},
            "bias",
            "is True; beside a tensor it must be false or a tensor's name",
        ),
    ],
)
def test_a_missing_tensor_is_named_with_its_neighbour(
    tmp_path: Path, table: dict[str, Any], field: str, complaint: str
) -> None:
    np.savez(tmp_path / "w.npz", **{"conv1.weight": np.ones((2, 3, 1))})  # type: ignore[arg-type]  # as above
    with pytest.raises(InvalidConvolution) as refused:
        load_stack(written(tmp_path, stack({"kind": "conv", **table}, weights="w.npz")))
    assert refused.value.field == f"layers[0].{field}"
    assert complaint in refused.value.message


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("stack.toml", "input = [", "is no TOML: "),
        ("stack.toml", "a = 1\na = 2", "is no TOML: "),
        ("stack.yaml", "", "is neither .json nor .toml"),
        ("stack.json", " " * (LARGEST_FILE + 1), "has more than 1048576 bytes"),
        ("stack.json", "\ud800", "is no JSON: 'utf-8' codec"),
    ],
)
def test_what_is_no_description_is_refused(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(InvalidConvolution, match=complaint):
        load_stack(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConvolution, match=r"stack\.json: No such file"):
        load_stack(tmp_path / "stack.json")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**33) | st.floats() | st.sampled_from(["same", "relu", "conv", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
small = st.integers(0, 4)
conv = st.fixed_dictionaries(
    {"kind": st.just("conv"), "weight": st.lists(small, min_size=3, max_size=5) | values},
    optional={"bias": st.booleans() | values, **dict.fromkeys(LayerParameters.__annotations__, small | values)},
)
pool = st.fixed_dictionaries(
    {"kind": st.sampled_from(["max", "average", "adaptive_average"])},
    optional=dict.fromkeys(("kernel", "stride", "padding", "dilation", "output_size"), small | values),
)
files = st.fixed_dictionaries(
    {"input": st.lists(st.integers(0, 9), max_size=5) | values, "layers": st.lists(conv | pool | values, max_size=3)},
    optional={"dtype": st.sampled_from(["int8", "float64"]) | values, "weights": values, "x": values},
)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(told=files | values)
def test_a_file_of_anything_is_a_stack_or_is_refused(tmp_path: Path, told: object) -> None:
    path = written(tmp_path, told)
    with suppress(InvalidConvolution, WeightsError):
        steps(load_stack(path))


CONTENTS = {"stack.toml": TOML, "stack.json": json.dumps(tomllib.loads(TOML))}


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(CONTENTS)), place=st.integers(0, 400), cut=st.integers(0, 6), put=st.text(max_size=4)
)
def test_a_damaged_file_is_a_stack_or_is_refused(tmp_path: Path, name: str, place: int, cut: int, put: str) -> None:
    content = CONTENTS[name][:place] + put + CONTENTS[name][place + cut :]
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with suppress(InvalidConvolution, WeightsError):
        assert steps(load_stack(path))
