"""Networks of torch.nn as the layers of a stack: their shapes and, computed by torch from the layers, their results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from tests.client.torch_comparison import drawn, torch

from convolver.client._stack_layers import Conv, Pool
from convolver.client.torch import describe, to_remote
from convolver.core.operation import Tensor
from convolver.core.stack import ConvolutionLayer, parse_stack

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.client import Client
    from convolver.core.parameters import Parameters
    from convolver.core.stack import Layer

nn, F = torch.nn, torch.nn.functional

ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "leaky_relu": nn.LeakyReLU(),
    "elu": nn.ELU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU("tanh"),
    "silu": nn.SiLU(),
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "softplus": nn.Softplus(),
    "hardswish": nn.Hardswish(),
}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def shapes(layers: Sequence[Conv | Pool], input_shape: Sequence[int]) -> list[tuple[int, ...]]:
    """Of each layer's output, as the core has it."""
    headers: list[Layer] = [
        layer.parameters
        if isinstance(layer, Pool)
        else ConvolutionLayer(
            Tensor("float32", tuple(layer.weight.shape)),
            None if layer.bias is None else Tensor("float32", tuple(layer.bias.shape)),
            cast("Parameters", layer.parameters),
        )
        for layer in layers
    ]
    return [step.output.shape for step in parse_stack(Tensor("float32", tuple(input_shape)), headers, {})]


def computed(layers: Sequence[Conv | Pool], x: Any) -> Any:  # noqa: ANN401 - torch's
    """The stack by torch.nn.functional, for padding with zeros."""
    for layer in layers:
        x = convolved(layer, x) if isinstance(layer, Conv) else pooled(layer, x)
    return x


def convolved(layer: Conv, x: Any) -> Any:  # noqa: ANN401 - as above
    given: dict[str, Any] = {**layer.parameters}
    activation, transposed = given.pop("activation", None), given.pop("transposed", False)
    assert given.pop("padding_mode", "zeros") == "zeros"
    name = f"conv{'_transpose' * transposed}{layer.weight.dim() - 2}d"
    y = getattr(F, name)(x, layer.weight, layer.bias, **given)
    return ACTIVATIONS[activation](y) if activation else y


def pooled(layer: Pool, x: Any) -> Any:  # noqa: ANN401 - as above
    given: dict[str, Any] = {**layer.parameters}
    name = {"max": "max_pool", "average": "avg_pool", "adaptive_average": "adaptive_avg_pool"}[given.pop("kind")]
    if "kernel" in given:
        given["kernel_size"] = given.pop("kernel")
    return getattr(F, f"{name}{x.dim() - 2}d")(x, **given)


def settled(network: Any) -> Any:  # noqa: ANN401 - a module
    """In eval mode, with batch norms whose numbers are not those of their making."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the base of all
            for each, low in (
                (module.running_mean, -1),
                (module.running_var, 0.5),
                (module.weight, -2),
                (module.bias, -1),
            ):
                if each is not None:
                    nn.init.uniform_(each, low, 2)
    return network.eval()


def assert_described(network: Any, x: Any, rtol: float = 1e-12) -> list[Conv | Pool]:  # noqa: ANN401 - torch's
    """What the layers give is what the network gives, the spatial dimensions of 1 of a vector aside."""
    layers = describe(network, x.shape)
    with torch.no_grad():
        expected = network(x)
        output = computed(layers, x)
    assert shapes(layers, x.shape)[-1] == tuple(output.shape)
    torch.testing.assert_close(output.reshape(expected.shape), expected, rtol=rtol, atol=rtol)
    return layers


def test_nested_sequentials_are_one_list_with_their_own_weights() -> None:
    first, last = nn.Conv2d(3, 8, 3, padding="same", bias=False), nn.ConvTranspose2d(8, 2, 4, 2, 1, output_padding=1)
    network = nn.Sequential(
        nn.Sequential(first, nn.ReLU()), nn.MaxPool2d(3, 2, 1, dilation=2), nn.Sequential(last)
    ).double()
    layers = assert_described(network, torch.randn(2, 3, 17, 16, dtype=torch.float64))
    conv, pool, transposed = layers
    assert isinstance(conv, Conv)
    assert isinstance(transposed, Conv)
    assert (conv.weight is first.weight, conv.bias) == (True, None)
    assert (transposed.weight is last.weight, transposed.bias is last.bias) == (True, True)
    assert (conv.parameters["activation"], transposed.parameters["output_padding"]) == ("relu", (1, 1))
    assert pool == Pool("max", (3, 3), stride=(2, 2), padding=(1, 1), dilation=(2, 2))


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_every_rank_and_kind_is_described(ndim: int) -> None:
    def made(name: str, *arguments: Any, **more: Any) -> Any:  # noqa: ANN401 - modules
        return getattr(nn, f"{name}{ndim}d")(*arguments, **more)

    network = nn.Sequential(
        made("Conv", 2, 4, 3, stride=2, padding=1, dilation=1, groups=2),
        made("AvgPool", 3, stride=2, padding=1),
        made("ConvTranspose", 4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
        made("MaxPool", 2),
        made("Conv", 6, 2, 3, padding="same"),
        made("AdaptiveAvgPool", 2),
    ).double()
    assert len(assert_described(network, torch.randn(2, 2, *(19, 18, 17)[:ndim], dtype=torch.float64))) == 6


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same"])
def test_padding_modes_keep_their_names(mode: str, padding: Any) -> None:  # noqa: ANN401 - a number or a word
    network = nn.Conv2d(2, 3, 4, padding=padding, padding_mode=mode)
    (layer,) = describe(network)
    assert layer.parameters == {
        "stride": (1, 1),
        "padding": padding if padding == "same" else (2, 2),
        "dilation": (1, 1),
        "groups": 1,
        "padding_mode": mode,
    }
    assert shapes([layer], (1, 2, 9, 8))[-1] == tuple(network(torch.zeros(1, 2, 9, 8)).shape)


def test_remote_modules_are_described_as_torchs() -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ConvTranspose1d(3, 2, 3, stride=2)).double()
    local = [repr(layer) for layer in describe(network)]
    assert [repr(layer) for layer in describe(to_remote(network))] == local


@pytest.mark.parametrize("word", ACTIVATIONS)
def test_activations_merge_into_the_convolution_before(word: str) -> None:
    network = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Identity(), nn.Dropout1d(), ACTIVATIONS[word]).double().eval()
    (layer,) = assert_described(network, torch.randn(1, 2, 50, dtype=torch.float64), 1e-8)
    assert cast("Conv", layer).parameters["activation"] == word


@pytest.mark.parametrize(
    ("convolution", "size"),
    [
        (lambda: nn.Conv1d(2, 6, 3, groups=2), (9,)),
        (lambda: nn.Conv2d(2, 6, 3, bias=False), (9, 8)),
        (lambda: nn.Conv3d(2, 6, 2), (4, 5, 3)),
        (lambda: nn.ConvTranspose1d(4, 6, 3, groups=2, stride=2), (5,)),
        (lambda: nn.ConvTranspose2d(2, 6, 3, bias=False), (5, 4)),
        (lambda: nn.ConvTranspose3d(6, 6, 2, groups=3), (3, 2, 3)),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_is_folded(convolution: Any, size: tuple[int, ...], affine: bool) -> None:  # noqa: ANN401, FBT001 - a lambda; a parameter
    convolved = convolution()
    norm = getattr(nn, f"BatchNorm{len(size)}d")(6, eps=0.3, affine=affine)
    network = settled(nn.Sequential(convolved, norm, nn.ReLU()).double())
    (layer,) = assert_described(network, torch.randn(3, convolved.in_channels, *size, dtype=torch.float64))
    assert cast("Conv", layer).parameters["activation"] == "relu"


def test_a_folded_batch_norm_is_rounded_once_from_float64() -> None:
    network = settled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    (narrow,) = describe(network)
    (wide,) = describe(network.double())
    assert cast("Conv", narrow).weight.dtype == torch.float32
    for name in ("weight", "bias"):
        assert torch.equal(getattr(narrow, name), getattr(wide, name).float())


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")  # torch says so of every one
def test_complex_convolutions_are_described() -> None:
    network = nn.Conv1d(2, 3, 3, dtype=torch.complex64)
    (layer,) = describe(network)
    assert cast("Conv", layer).weight is network.weight


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Dropout2d(),
                nn.Flatten(),
                nn.Linear(4 * 7 * 5, 16, bias=False),
                nn.BatchNorm1d(16),
                nn.SiLU(),
                nn.Dropout(),
                nn.Linear(16, 3),
            ),
            (2, 1, 14, 11),
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 2)), (3, 2, 3, 4)),
        (lambda: nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(18, 2)), (1, 2, 7)),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(1), nn.Linear(2, 2), nn.Tanh()), (2, 2, 3, 4, 5)),
    ],
)
def test_linear_layers_become_convolutions_of_the_whole_map(network: Any, shape: tuple[int, ...]) -> None:  # noqa: ANN401 - a lambda
    made = settled(network().double())
    layers = assert_described(made, torch.randn(shape, dtype=torch.float64))
    assert shapes(layers, shape)[-1][2:] == (1,) * (len(shape) - 2)
    linear = next(module for module in made.modules() if isinstance(module, nn.Linear))
    if linear.bias is not None:
        first = next(
            layer for layer in layers if isinstance(layer, Conv) and layer.weight.numel() == linear.weight.numel()
        )
        assert first.weight.data_ptr() == linear.weight.data_ptr()


def test_a_subclass_of_sequential_with_its_forward_and_repeated_modules_are_described() -> None:
    class Block(nn.Sequential):  # type: ignore[misc,name-defined]  # torch is Any here
        pass

    act, convolution = nn.ReLU(), nn.Conv1d(2, 2, 3)
    layers = describe(Block(convolution, act, convolution, act))
    assert [layer.parameters.get("activation") for layer in layers if isinstance(layer, Conv)] == ["relu", "relu"]


def test_the_service_computes_what_the_network_does(client: Client, backend: str) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.Softplus(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=2, padding_mode="circular", groups=2),
        nn.GELU(),
        nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1),
        nn.BatchNorm2d(8),
        nn.AvgPool2d(3, 2, 1),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d((3, 2)),
        nn.Flatten(),
        nn.Linear(48, 10),
        nn.BatchNorm1d(10),
        nn.Tanh(),
        nn.Linear(10, 4),
    )
    settled(network.double())
    (x,) = drawn((2, 3, 16, 15))
    output = client.stack(describe(network, x.shape), backend=backend)(x)
    torch.testing.assert_close(output.reshape(2, 4), network(x).detach(), rtol=0, atol=1e-8)
