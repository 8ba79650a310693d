"""Stacks on a real server: layers one after the other, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.async_calls import asynchronously
from tests.contract import ANSWER, IMAGE, KERNEL

from convolver.client import AsyncClient, Client, Conv, Pool
from convolver.core.errors import InvalidConvolution, LimitExceeded
from convolver.core.gradients import Wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from convolver.client import AsyncLayer, StackAnswer, StackGradients

INPUT = np.arange(2 * 3 * 9 * 9, dtype=np.float32).reshape(2, 3, 9, 9) % 5 - 2
FIRST = np.arange(4 * 3 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 3) % 3 - 1
BIAS = np.arange(4, dtype=np.float32)
SECOND = np.arange(2 * 4 * 2 * 2, dtype=np.float32).reshape(2, 4, 2, 2) % 3 - 1
"""All sums of these are small integers, and exact."""


def items(layer: Callable[..., Any] = Conv) -> list[Any]:
    """A convolution, pooling, and a convolution that `layer` makes."""
    return [
        Conv(FIRST, BIAS, padding=1, activation="relu"),
        Pool("max", 3, stride=2, padding=1),
        layer(SECOND, stride=2),
    ]


def pooled(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pool("max", 3, stride=2, padding=1), by NumPy."""
    padded = np.pad(array, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    maxima: NDArray[np.float32] = windows[:, :, ::2, ::2].max(axis=(4, 5))
    return maxima


@pytest.fixture(scope="module")
def expected(client: Client) -> NDArray[np.float32]:
    """What INPUT gives with `items`, one after the other."""
    between = pooled(client.conv2d(INPUT, FIRST, BIAS, 1, 1, activation="relu"))
    output: NDArray[np.float32] = client.conv2d(between, SECOND, None, 2)
    return output


@pytest.mark.parametrize("kind", ["Conv", "layer"])
def test_a_stack_gives_what_its_layers_give_in_turn(
    client: Client, expected: NDArray[np.float32], backend: str, kind: str
) -> None:
    stack = client.stack(items(Conv if kind == "Conv" else client.layer), backend=backend)
    for _ in range(2):
        np.testing.assert_array_equal(stack(INPUT), expected, strict=True)
    np.testing.assert_array_equal(stack(INPUT[0]), expected[0], strict=True)
    np.testing.assert_array_equal(list(stack.map([INPUT, INPUT + 0])), [expected, expected])


def test_the_other_colour_gives_the_same(client: Client, expected: NDArray[np.float32]) -> None:
    async def calls(other: AsyncClient) -> tuple[NDArray[np.float32], StackAnswer, list[NDArray[np.float32]]]:
        layer: AsyncLayer = other.layer(SECOND, stride=2)
        stack = other.stack([*items()[:2], layer])
        return await stack(INPUT), await stack.run(INPUT), [output async for output in stack.map([INPUT])]

    output, answer, [mapped] = asynchronously(client.address, calls)
    for found in (output, answer.output, mapped):
        np.testing.assert_array_equal(found, expected, strict=True)


def test_run_gives_plan_and_report(client: Client, expected: NDArray[np.float32]) -> None:
    stack = client.stack(items(), backend="reference")
    answer = stack.run(INPUT)
    np.testing.assert_array_equal(answer.output, expected)
    assert answer.plan == stack.plan(INPUT.shape)
    assert [layer.output.shape for layer in answer.plan.layers] == [(2, 4, 9, 9), (2, 4, 5, 5), (2, 2, 2, 2)]
    assert answer.plan.parameter_count == FIRST.size + BIAS.size + SECOND.size
    assert answer.report.seconds["compute"] > 0
    assert answer.output.flags.writeable


def test_a_stack_of_one_is_its_layer(client: Client) -> None:
    for layer in (Conv(KERNEL), client.layer(KERNEL)):
        stack = client.stack([layer])
        np.testing.assert_array_equal(stack(IMAGE), ANSWER)
        assert len(stack.run(IMAGE).plan.layers) == 1
        found = stack.gradients(IMAGE, ANSWER, bias=True)
        theirs = client.gradients(IMAGE, KERNEL, ANSWER, bias=True)
        assert_gradients(found, theirs.input, [theirs.weight], [theirs.bias])
    np.testing.assert_array_equal(client.stack([Pool("max", 2)])(IMAGE), [[[[4]]]])


def assert_gradients(found: StackGradients, input: Any, weights: list[Any], biases: list[Any]) -> None:  # noqa: ANN401 - arrays or None
    assert [weight is None for weight in found.weights] == [weight is None for weight in weights]
    assert [bias is None for bias in found.biases] == [bias is None for bias in biases]
    for mine, theirs in zip([found.input, *found.weights, *found.biases], [input, *weights, *biases], strict=True):
        if theirs is not None:
            np.testing.assert_array_equal(mine, theirs, strict=True)


@pytest.mark.parametrize("kind", ["Conv", "layer"])
def test_gradients_have_an_entry_for_each_layer(client: Client, kind: str) -> None:
    layers: list[Any] = [Conv(FIRST, padding=1), Pool("average", 1), (Conv if kind == "Conv" else client.layer)(SECOND)]
    between = client.conv2d(INPUT, FIRST, padding=1)
    grad_output = np.ones((2, 2, 8, 8), np.float32)
    last = client.gradients(between, SECOND, grad_output, bias=True)
    first = client.gradients(INPUT, FIRST, last.input, padding=1, bias=True)
    stack = client.stack(layers)
    for _ in range(2):
        found = stack.gradients(INPUT, grad_output, bias=True)
        biases = [first.bias, None, last.bias]
        assert_gradients(found, first.input, [first.weight, None, last.weight], biases)
        assert found.plan.wanted == Wanted(input=True, weight=True, bias=True)
    assert_gradients(stack.gradients(INPUT, grad_output, wrt="input"), first.input, [None] * 3, [None] * 3)
    assert_gradients(
        stack.gradients(INPUT, grad_output, wrt=["weight"]), None, [first.weight, None, last.weight], [None] * 3
    )


def test_gradients_in_the_other_colour(client: Client) -> None:
    grad_output = np.ones((2, 2, 2, 2), np.float32)
    mine = asynchronously(client.address, lambda other: other.stack(items()).gradients(INPUT, grad_output, bias=True))
    theirs = client.stack(items()).gradients(INPUT, grad_output, bias=True)
    assert_gradients(mine, theirs.input, theirs.weights, theirs.biases)


def test_a_conv_follows_its_array_and_a_layer_does_not(client: Client) -> None:
    kernel = KERNEL.copy()
    following, staying = client.stack([Conv(kernel)]), client.stack([client.layer(kernel)])
    np.testing.assert_array_equal([following(IMAGE), staying(IMAGE)], [ANSWER, ANSWER])
    kernel *= 2
    np.testing.assert_array_equal([following(IMAGE), staying(IMAGE)], [2 * ANSWER, ANSWER])


def test_torch_parameters_follow_an_optimizer(client: Client) -> None:
    torch = pytest.importorskip("torch", reason="torch is what is tested")
    weight = torch.nn.Parameter(torch.from_numpy(KERNEL.copy()))
    stack = client.stack([Conv(weight)])
    optimizer = torch.optim.SGD([weight], lr=0.5)
    for _ in range(2):
        before = weight.detach().clone()
        found = stack.gradients(torch.from_numpy(IMAGE), torch.ones(1, 1, 2, 2))
        weight.grad = found.weights[0]
        optimizer.step()
        assert torch.equal(weight, before - 0.5 * found.weights[0])
        output = stack(torch.from_numpy(IMAGE))
        assert torch.equal(output, torch.nn.functional.conv2d(torch.from_numpy(IMAGE), weight))


def test_shapes_alone_can_be_planned_but_not_run(client: Client) -> None:
    stack = client.stack([Conv((4, 3, 3, 3), bias=True, padding=1), Pool("max", 2), Conv((2, 4, 1, 1))])
    plan = stack.plan((1, 3, 8, 8))
    assert (plan.output_shape, plan.dtype, plan.parameter_count) == ((1, 2, 4, 4), "float32", 108 + 4 + 8)
    assert stack.plan((1, 3, 8, 8), "float16").dtype == "float16"
    zeros = np.zeros((1, 3, 8, 8), np.float32)
    for call in (stack, stack.run, lambda array: next(stack.map([array]))):
        with pytest.raises(InvalidConvolution, match=r"planned, not run") as caught:
            call(zeros)
        assert caught.value.field == "layers[0].weight"


def test_a_shape_beside_weights_is_planned_in_their_type(client: Client) -> None:
    stack = client.stack([Conv((4, 3, 1, 1)), client.layer(SECOND.astype(np.float64))])
    assert stack.plan((1, 3, 8, 8), "float64").dtype == "float64"
    with pytest.raises(InvalidConvolution, match="float64"):
        stack.plan((1, 3, 8, 8), "float32")


REFUSED: dict[str, tuple[list[Any], dict[str, Any], str, str]] = {
    "a layer's own": ([Conv(KERNEL)], {"stride": 2}, "stride", "belongs to the layers"),
    "a layer's word": ([Conv(KERNEL)], {"activation": "relu"}, "activation", "belongs to the layers"),
    "no parameter": ([Conv(KERNEL)], {"presicion": "high"}, "presicion", "did you mean precision"),
    "an array": ([Conv(KERNEL), KERNEL], {}, "layers[1]", "is a ndarray"),
    "a word": (["relu"], {}, "layers[0]", "is a str"),
    "nothing": ([None], {}, "layers[0]", "is a NoneType"),
}


@pytest.mark.parametrize(("layers", "parameters", "field", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_stack_is_refused_when_it_is_made(
    layers: list[Any], parameters: dict[str, Any], field: str, words: str
) -> None:
    for client in (Client("127.0.0.1:1"), AsyncClient("127.0.0.1:1")):
        with pytest.raises(InvalidConvolution, match=words) as caught:
            client.stack(layers, **parameters)
        assert caught.value.field == field


def test_a_layer_of_the_other_colour_is_refused() -> None:
    other = AsyncClient("127.0.0.1:1").layer(KERNEL)
    with pytest.raises(InvalidConvolution, match=r"layers\[0\] is a AsyncLayer"):
        Client("127.0.0.1:1").stack([other])


def test_what_does_not_fit_is_refused_naming_the_layer_and_nothing_is_sent() -> None:
    client = Client("127.0.0.1:1")
    with pytest.raises(InvalidConvolution, match=r"^layers\[1\].*\(1, 4, 3, 3\)") as caught:
        client.stack([Conv(FIRST), Conv(FIRST)])(INPUT[:1, :, :5, :5])
    assert caught.value.field.startswith("layers[1].")
    with pytest.raises(InvalidConvolution, match="1 to 1024"):
        client.stack([])(INPUT)
    with pytest.raises(InvalidConvolution, match="grad_output"):
        client.stack(items()).gradients(INPUT, INPUT)


def test_output_dtype_is_that_of_the_last_layer(client: Client) -> None:
    stack = client.stack([Conv(np.full((1, 1, 1), 100, np.int8)), Pool("max", 1)], overflow="saturate")
    np.testing.assert_array_equal(stack(np.full((1, 1, 3), 2, np.int8)), np.full((1, 1, 3), 127, np.int8), strict=True)
    wider = client.stack([Conv(np.full((1, 1, 1), 100, np.int8))], output_dtype="int32")
    np.testing.assert_array_equal(wider(np.full((1, 1, 3), 2, np.int8)), np.full((1, 1, 3), 200, np.int32), strict=True)


def test_a_limit_names_its_setting(client: Client) -> None:
    with pytest.raises(LimitExceeded, match="--max-"):
        client.stack([Conv((1, 1, 1, 1), padding=10**6)]).plan((1, 1, 1, 1))
