"""The modules of convolver.client.torch against torch.nn's, and networks that are moved over to them."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.client.torch_comparison import assert_same, drawn, torch

from convolver.client import torch as face
from convolver.client.torch import to_remote
from convolver.core.errors import InvalidConvolution

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import RunningServer

    from convolver.client import Client

nn = torch.nn

KINDS = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"]
FORWARD, TRANSPOSED = KINDS[:3], KINDS[3:]
INPUT = (2, 4, 7, 6, 5)
"""(N, C, *S): as many dimensions of it as a layer has."""

CONFIGURATIONS: list[tuple[str, dict[str, Any]]] = [
    ("Conv1d", {"kernel_size": 3, "stride": 2, "bias": False}),
    ("Conv2d", {"kernel_size": (3, 2), "groups": 2, "dilation": (2, 1), "padding": 1}),
    ("Conv2d", {"kernel_size": 3, "padding": "valid", "stride": 2}),
    ("Conv3d", {"kernel_size": 2, "padding": (1, 0, 1), "groups": 4}),
    ("ConvTranspose1d", {"kernel_size": 4, "stride": 3, "padding": 1, "output_padding": 2}),
    ("ConvTranspose2d", {"kernel_size": 3, "stride": (2, 1), "groups": 2, "dilation": 2, "bias": False}),
    ("ConvTranspose3d", {"kernel_size": 2, "stride": 2, "padding": 1}),
    *((kind, {"kernel_size": 3, "padding": "same", "dilation": 2, "padding_mode": "reflect"}) for kind in FORWARD),
    *((kind, {"kernel_size": 4, "padding": "same", "padding_mode": "circular"}) for kind in FORWARD),
    *((kind, {"kernel_size": 3, "padding": 2, "stride": 2, "padding_mode": "replicate"}) for kind in FORWARD),
    *((kind, {"kernel_size": 2, "padding": 3, "padding_mode": "circular"}) for kind in FORWARD),
]


def both(kind: str, client: Client | None, channels: int = 4, **arguments: Any) -> tuple[Any, Any]:  # noqa: ANN401 - modules
    """A remote module and torch's own, made by the same call."""
    made = []
    for home, more in ((face, {"client": client}), (nn, {})):
        torch.manual_seed(0)
        made.append(getattr(home, ("Remote" if more else "") + kind)(4, channels, **arguments, **more))
    return made[0], made[1]


def spatial(kind: str) -> int:
    return int(kind[-2])


def small_network() -> Any:  # noqa: ANN401 - a module
    """An encoder and a decoder of doubles, nested, with layers of other kinds between them."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4), nn.ReLU())
    layers = {"encoder": encoder, "decoder": nn.ModuleList([nn.ConvTranspose2d(4, 1, 2, stride=2)])}
    return nn.Sequential(nn.ModuleDict(layers)["encoder"], nn.Sequential(*layers["decoder"], nn.Tanh())).double()


def same_states(first: Any, second: Any) -> bool:  # noqa: ANN401 - modules
    states = first.state_dict(), second.state_dict()
    return list(states[0]) == list(states[1]) and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def trained(network: Any, steps: int = 4) -> Any:  # noqa: ANN401 - a module
    x, target = (each.detach() for each in drawn((3, 2, 6, 5), (3, 1, 12, 10)))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(network(x), target).backward()
        optimizer.step()
    return network


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")  # torch says so of every one
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize(("kind", "arguments"), CONFIGURATIONS, ids=str)
def test_outputs_and_gradients_are_torchs(
    client: Client, kind: str, arguments: dict[str, Any], dtype: str, *, batched: bool
) -> None:
    remote, local = (module.to(getattr(torch, dtype)) for module in both(kind, client, **arguments))
    (x,) = drawn(INPUT[0 if batched else 1 : 2 + spatial(kind)], dtype=getattr(torch, dtype))
    expected = torch.func.functional_call(local, dict(remote.named_parameters()), x)
    assert_same(remote(x), expected, [x, *remote.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_constructors_and_first_values_are_torchs(kind: str) -> None:
    remote, local = both(kind, None, 6, kernel_size=3, stride=2, groups=2, dtype=torch.float64)
    assert isinstance(remote, type(local))
    assert repr(remote) == f"Remote{local!r}"
    assert same_states(remote, local)
    with pytest.raises(ValueError, match="out_channels must be divisible by groups"):
        type(remote)(4, 3, 3, groups=2)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_exchanged_with_torch_in_both_directions(kind: str) -> None:
    remote, local = both(kind, None, kernel_size=2)
    local.reset_parameters()
    assert not same_states(remote, local)
    remote.load_state_dict(local.state_dict())
    assert same_states(remote, local)
    remote.reset_parameters()
    local.load_state_dict(remote.state_dict())
    assert same_states(remote, local)


@pytest.mark.parametrize("kind", TRANSPOSED)
@pytest.mark.parametrize("larger", [0, 1, 2])
def test_a_transposed_layer_takes_the_size_of_its_output(client: Client, kind: str, larger: int) -> None:
    arguments = {"kernel_size": 2, "stride": 3, "padding": 1, "output_padding": 1}
    remote, local = (module.double() for module in both(kind, client, **arguments))
    x = drawn(INPUT[: 2 + spatial(kind)])[0]
    sizes = [3 * (length - 1) + larger for length in x.shape[2:]]
    for given in (sizes, [2, 4, *sizes]):
        torch.testing.assert_close(remote(x, given), local(x, output_size=given))
    torch.testing.assert_close(remote(x[0], [4, *sizes]), local(x[0], [4, *sizes]))


@pytest.mark.parametrize("wrong", [[50, 50], [8, 8], [2, 20, 20], [1, 2, 4, 20, 20]], ids=str)
def test_sizes_that_no_output_has_are_refused_as_torch_refuses_them(client: Client, wrong: list[int]) -> None:
    remote, local = both("ConvTranspose2d", client, kernel_size=2, stride=3)
    x = torch.zeros(2, 4, 7, 7)
    with pytest.raises(ValueError, match=r"output_size|output size"):
        local(x, wrong)
    with pytest.raises(InvalidConvolution) as caught:
        remote(x, wrong)
    assert caught.value.field.startswith("output_size")


def test_a_copy_shares_its_client_and_nothing_else(client: Client) -> None:
    layer = face.RemoteConv2d(4, 4, 3, client=client)
    for copied in (copy.deepcopy(layer), copy.deepcopy(nn.ModuleList([layer]))[0]):
        assert copied.client is client
        assert same_states(copied, layer)
        assert copied.weight is not layer.weight
    shallow = copy.copy(layer)
    shallow.client = None
    assert layer.client is client


def test_a_pickle_leaves_the_client_behind(client: Client) -> None:
    layer = face.RemoteConvTranspose1d(4, 2, 3, client=client)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    unpickled = pickle.loads(pickle.dumps(layer))  # noqa: S301 - our own bytes
    for loaded in (unpickled, torch.load(file, weights_only=False)):
        assert loaded.client is None
        assert same_states(loaded, layer)
        loaded.client = client
        torch.testing.assert_close(loaded(torch.ones(4, 5)), layer(torch.ones(4, 5)))


def test_a_module_without_a_client_calls_the_address_of_the_environment(tmp_path: Path, server: RunningServer) -> None:
    layer = face.RemoteConv1d(1, 1, 2, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    torch.save(layer, tmp_path / "layer")
    script = (
        "import sys, torch; from convolver.client._default_client import default_client as client;"
        "layer = torch.load(sys.argv[1], weights_only=False);"
        "output = layer(torch.ones(1, 3)); output.sum().backward();"
        "print(output.tolist(), layer.weight.grad.tolist(), client().address)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "layer")],
        env=os.environ | {"CONVOLVER_ADDRESS": server.address},
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout.strip() == f"[[4.0, 4.0]] [[[2.0, 2.0]]] {server.address}"


def test_a_network_learns_what_it_learns_locally(client: Client) -> None:
    untouched, remote, local = small_network(), trained(to_remote(small_network(), client)), trained(small_network())
    assert not torch.allclose(untouched[0][0].weight, local[0][0].weight, atol=1e-3)
    torch.testing.assert_close(remote.state_dict(), local.state_dict(), rtol=0, atol=1e-10)


def test_a_network_is_moved_in_place_with_its_parameters_and_hooks(client: Client) -> None:
    network = small_network().eval()
    parameters, seen = dict(network.named_parameters()), []
    network[0][0].register_forward_hook(lambda *_: seen.append("hook"))
    x = drawn((1, 2, 6, 5))[0]
    expected = network(x)
    assert to_remote(network, client) is network
    assert [type(module).__name__ for module in network.modules()] == [
        *("Sequential", "Sequential", "RemoteConv2d", "BatchNorm2d", "ReLU"),
        *("Sequential", "RemoteConvTranspose2d", "Tanh"),
    ]
    assert all(parameter is parameters[name] for name, parameter in network.named_parameters())
    torch.testing.assert_close(network(x), expected)
    assert seen == ["hook", "hook"]
    assert not network[0][0].training


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_alone_is_moved_too(client: Client, kind: str) -> None:
    _, local = both(kind, None, kernel_size=2)
    assert type(to_remote(local, client)) is getattr(face, f"Remote{kind}")
    assert local.client is client


def test_what_is_remote_already_gets_the_new_client(client: Client) -> None:
    network = to_remote(nn.Sequential(nn.Conv1d(1, 1, 2)))
    assert network[0].client is None
    assert to_remote(network, client)[0].client is client


def test_subclasses_keep_their_own_forward(client: Client) -> None:
    class Standardised(nn.Conv2d):  # type: ignore[misc,name-defined]  # torch is Any here
        pass

    layer = Standardised(1, 1, 2)
    assert type(to_remote(nn.Sequential(layer), client)[0]) is Standardised
    parametrized = nn.utils.parametrizations.weight_norm(to_remote(nn.Conv2d(2, 2, 2), client))
    x = drawn((1, 2, 4, 4), dtype=torch.float32)[0]
    expected = nn.functional.conv2d(x, parametrized.weight, parametrized.bias)
    torch.testing.assert_close(parametrized(x), expected)
    assert parametrized.client is client


def test_a_lazy_convolution_is_refused_by_name_until_it_has_a_weight(client: Client) -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Sequential(nn.LazyConv2d(2, 2)), nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(InvalidConvolution, match=r"1\.0 is a LazyConv2d without a weight") as caught:
        to_remote(network, client)
    assert caught.value.field == "1.0"
    assert type(network[0]) is nn.Conv2d
    x = torch.ones(1, 1, 5, 5)
    expected = network(x)
    torch.testing.assert_close(to_remote(network, client)(x), expected)
    assert type(network[1][0]) is face.RemoteConv2d
