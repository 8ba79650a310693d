"""Stacks behind the service, on both back ends: outputs, gradients, and Fourier transforms within."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from tests.core.stack_runs import Operands, Stack, convolution, operands, pooling
from tests.server.layer_calls import metric

from convolver.client import Conv, Pool
from convolver.core.errors import InvalidConvolution
from convolver.core.operation import Tensor
from convolver.core.stack import ConvolutionLayer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    from convolver.client import Client
    from convolver.client import Stack as ClientStack
    from convolver.core.dtypes import DTypeName

oracle: Any = pytest.importorskip("tests.core.stack_oracle", reason="torch is not installed")

each_backend = pytest.mark.parametrize("backend", ["reference", "torch:cpu"])


def lenet(dtype: DTypeName) -> Stack:
    """LeNet-5's convolutional part, with tanh and average pooling, as LeCun et al. 1998 have it."""
    return Stack(
        Tensor(dtype, (2, 1, 32, 32)),
        (
            convolution((6, 1, 5, 5), dtype=dtype, activation="tanh"),
            pooling("average", kernel=2),
            convolution((16, 6, 5, 5), dtype=dtype, activation="tanh"),
            pooling("average", kernel=2),
            convolution((120, 16, 5, 5), dtype=dtype, activation="tanh"),
        ),
    )


def audio(dtype: DTypeName) -> Stack:
    return Stack(
        Tensor(dtype, (2, 2, 50)),
        (
            convolution((4, 2, 5), dtype=dtype, padding="causal", dilation=2, activation="gelu"),
            convolution((4, 1, 3), dtype=dtype, groups=4, padding=1, padding_mode="circular"),
            pooling("adaptive_average", output_size=[7]),
            convolution((3, 4, 1), bias=False, dtype=dtype),
        ),
    )


def volume(dtype: DTypeName) -> Stack:
    return Stack(
        Tensor(dtype, (2, 7, 6, 8)),  # without a batch
        (
            convolution((3, 2, 3, 2, 3), dtype=dtype, padding="same", activation="silu"),
            pooling("average", kernel=[2, 2, 3], stride=1),
            convolution((2, 3, 2, 2, 2), dtype=dtype, stride=2),
        ),
    )


def up_and_down(dtype: DTypeName) -> Stack:
    return Stack(
        Tensor(dtype, (1, 3, 9, 7)),
        (
            convolution((5, 3, 3, 3), dtype=dtype, stride=2, padding=1, activation="tanh"),
            convolution((5, 4, 3, 3), bias=False, dtype=dtype, transposed=True, stride=2, padding=1, output_padding=1),
            convolution((2, 4, 1, 1), dtype=dtype, activation="sigmoid"),
        ),
    )


def last(dtype: DTypeName) -> Stack:
    layout = {"layout": "channels_last"}
    return Stack(
        Tensor(dtype, (2, 8, 8, 3)),
        (
            ConvolutionLayer(Tensor(dtype, (3, 3, 3, 4)), Tensor(dtype, (4,)), {"layout": "channels_last"}),
            pooling("average", kernel=2),
            convolution((2, 2, 4, 5), bias=False, dtype=dtype, **layout),
        ),
    )


def linear(dtype: DTypeName) -> Stack:
    return Stack(
        Tensor(dtype, (2, 3, 12)),
        (
            convolution((4, 3, 3), dtype=dtype, padding=1),
            pooling("average", kernel=2),
            convolution((4, 2, 3), bias=False, dtype=dtype, transposed=True, stride=2),
        ),
    )


class Case(NamedTuple):
    """A stack and its type."""

    stack: Stack

    def __str__(self) -> str:
        return f"{self.stack.input.dtype} {self.stack.input.shape}"


CASES = [
    *(Case(make("float32")) for make in (lenet, audio, volume, up_and_down, last, linear)),
    *(Case(make("float64")) for make in (lenet, last)),
    *(Case(make("float16")) for make in (audio, up_and_down)),
    *(Case(linear(dtype)) for dtype in ("complex64", "complex128")),
]


def made(client: Client, stack: Stack, given: Operands, **parameters: Any) -> ClientStack:  # noqa: ANN401 - as callers write them
    """The same in the SDK's words."""
    layers: list[Any] = []
    for layer, weights in zip(stack.layers, given.weights, strict=True):
        if isinstance(layer, ConvolutionLayer):
            assert weights is not None
            parameters_of: Any = layer.parameters
            layers.append(Conv(*weights, **parameters_of))
        else:
            words: dict[str, Any] = {**layer}
            layers.append(Pool(words.pop("kind"), words.pop("kernel", None), **words))
    return client.stack(layers, **parameters)


@each_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_output_is_torchs(client: Client, case: Case, backend: str) -> None:
    given = operands(case.stack, 0)
    answer = made(client, case.stack, given, backend=backend, algorithm="direct").run(given.x)
    layers = oracle.layers(case.stack.steps, given)
    tolerance = 2 * oracle.forward_errors(case.stack.steps, given, layers)[-1].y
    assert answer.output.dtype == given.x.dtype
    assert answer.plan.backend == backend
    assert (np.abs(answer.output.astype(tolerance_type(given.x)) - oracle.numpy(layers[-1].y)) <= tolerance).all()


def tolerance_type(array: NDArray[Any]) -> type:
    return np.complex128 if array.dtype.kind == "c" else np.float64


@each_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_torchs(client: Client, case: Case, backend: str) -> None:
    given = operands(case.stack, 1)
    grads = made(client, case.stack, given, backend=backend).gradients(given.x, given.g, bias=True)
    layers = oracle.layers(case.stack.steps, given)
    errors = oracle.forward_errors(case.stack.steps, given, layers)
    expected = oracle.gradients(case.stack.steps, given, layers, errors)
    found = {"grad_input": grads.input}
    for i, (weight, bias) in enumerate(zip(grads.weights, grads.biases, strict=True)):
        found |= {f"layers[{i}].grad_weight": weight, f"layers[{i}].grad_bias": bias} if weight is not None else {}
    assert found.keys() == expected.keys() == grads.plan.outputs.keys()
    for name, grad in found.items():
        off = np.abs(grad.astype(tolerance_type(given.x)) - expected[name].ref)
        assert grad.dtype == given.x.dtype
        assert (off <= 2 * expected[name].error).all(), name


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64"])
def test_integers_are_exact(client: Client, dtype: DTypeName) -> None:
    rng = np.random.default_rng(2)
    x, first, second = (rng.integers(0, 3, shape).astype(dtype) for shape in ((1, 2, 6, 6), (2, 2, 2, 2), (1, 2, 2, 2)))
    stack = client.stack([Conv(first, activation="relu"), Pool("max", 2, stride=1), Conv(second)], output_dtype="int64")
    hidden = correlated(x, first)
    hidden = np.max([hidden[..., i : i + 4, j : j + 4] for i in range(2) for j in range(2)], 0)
    output = stack(x)
    assert output.dtype == np.int64
    np.testing.assert_array_equal(output, correlated(hidden, second))


def correlated(x: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    """2x2 kernels, offset by offset."""
    n = x.shape[-1] - 1
    views = {(i, j): x[..., i : i + n, j : j + n].astype(np.int64) for i in range(2) for j in range(2)}
    return np.asarray(
        sum(np.einsum("oc,nchw->nohw", w[:, :, i, j].astype(np.int64), view) for (i, j), view in views.items())
    )


@each_backend
def test_the_plan_of_an_answer_is_that_of_plan(client: Client, backend: str) -> None:
    given = operands(lenet("float32"), 3)
    stack = made(client, lenet("float32"), given, backend=backend)
    assert stack.run(given.x).plan == stack.plan(given.x.shape)


def with_large_kernel(client: Client, **parameters: Any) -> ClientStack:  # noqa: ANN401 - as callers write them
    large = np.random.default_rng(4).standard_normal((1, 1, 63, 63), np.float32) / 63
    return client.stack([Pool("max", 2), Conv(large, padding="same"), Conv(large, padding="same")], **parameters)


def image() -> NDArray[np.float32]:
    return np.random.default_rng(5).standard_normal((1, 1, 256, 256), np.float32)


@each_backend
def test_large_kernels_in_a_stack_are_transformed(client: Client, backend: str) -> None:
    answer = with_large_kernel(client, backend=backend).run(image())
    direct = with_large_kernel(client, backend=backend, algorithm="direct").run(image())
    assert [layer.algorithm for layer in answer.plan.layers] == ["direct", "fft", "fft"]
    assert [layer.algorithm for layer in direct.plan.layers] == ["direct"] * 3
    assert answer.plan.work < direct.plan.work == answer.plan.macs + 128 * 128 * 4
    scale = 63 * 63 * np.abs(direct.output).max()
    assert np.abs(answer.output - direct.output).max() <= 8 * 2.0**-24 * scale


@each_backend
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_summed_directly(
    client: Client, server: RunningServer, backend: str, value: float
) -> None:
    x = image()
    x[0, 0, 130, 40] = value
    before = metric(server, "convolver_replanned_total")
    answer = with_large_kernel(client, backend=backend).run(x)
    direct = with_large_kernel(client, backend=backend, algorithm="direct").run(x)
    assert metric(server, "convolver_replanned_total") == before + 1
    assert [layer.algorithm for layer in answer.plan.layers] == ["direct"] * 3
    assert answer.plan.execution.algorithm == "auto"
    np.testing.assert_array_equal(answer.output, direct.output)
    assert np.isfinite(answer.output).any()
    with pytest.raises(InvalidConvolution, match="not finite") as caught:
        with_large_kernel(client, backend=backend, algorithm="fft").run(x)
    assert caught.value.field == "input"


def test_a_thousand_layers_are_one_stack(client: Client) -> None:
    ones = np.ones((1, 1, 1), np.float32)
    stack = client.stack([*[Pool("max", 1)] * 1000, *[Conv(ones, ones[0, 0])] * 24])
    answer = stack.run(np.arange(-3, 4, dtype=np.float32).reshape(1, 1, 7))
    np.testing.assert_array_equal(answer.output, np.arange(21, 28).reshape(1, 1, 7))
    assert answer.plan == stack.plan((1, 1, 7))
    assert len(answer.plan.layers) == 1024
