"""convolver.client.torch.functional against torch.nn.functional: outputs, gradients, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.client.torch_comparison import RecordingClient, assert_same, drawn, torch

from convolver.client import Client, ServiceUnavailable
from convolver.client.torch import functional
from convolver.core.errors import InvalidConvolution, LimitExceeded, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

# Function, input, weight, channels of the bias (0: none), parameters.
CONFIGURATIONS: list[tuple[str, tuple[int, ...], tuple[int, ...], int, dict[str, Any]]] = [
    ("conv1d", (2, 3, 12), (4, 3, 5), 4, {"stride": 2, "padding": 2}),
    ("conv1d", (2, 4, 12), (6, 2, 3), 0, {"groups": 2, "dilation": 3, "padding": "same"}),
    ("conv1d", (3, 12), (4, 3, 3), 4, {"padding": (1,)}),
    ("conv2d", (2, 3, 7, 9), (4, 3, 3, 2), 4, {}),
    ("conv2d", (2, 4, 9, 8), (6, 2, 3, 3), 0, {"groups": 2, "dilation": (2, 1), "padding": (3, 2), "stride": (1, 3)}),
    ("conv2d", (4, 6, 6), (4, 1, 3, 3), 4, {"groups": 4, "padding": "same"}),
    ("conv2d", (2, 3, 5, 5), (4, 3, 1, 1), 4, {"padding": "valid"}),
    ("conv3d", (1, 2, 5, 6, 4), (3, 2, 3, 3, 2), 3, {"stride": (1, 2, 1), "padding": 1}),
    ("conv3d", (2, 4, 5, 4), (2, 1, 3, 2, 3), 0, {"groups": 2, "padding": (0, 1, 2)}),
    ("conv_transpose1d", (2, 4, 6), (4, 3, 4), 3, {"stride": 3, "padding": 1, "output_padding": 2}),
    ("conv_transpose1d", (4, 6), (4, 1, 3), 0, {"groups": 2, "dilation": 2}),
    ("conv_transpose2d", (2, 4, 5, 6), (4, 3, 3, 3), 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    ("conv_transpose2d", (4, 3, 4), (4, 2, 2, 3), 4, {"groups": 2, "stride": (1, 2), "dilation": (2, 1)}),
    ("conv_transpose3d", (1, 2, 3, 2, 3), (2, 3, 2, 3, 2), 3, {"stride": 2, "padding": (0, 1, 0)}),
    ("conv_transpose3d", (2, 3, 2, 3), (2, 1, 2, 1, 3), 0, {"output_padding": 1, "stride": 2, "groups": 2}),
]
OPERANDS = {
    "conv1d": ((1, 2, 5), (2, 1, 3)),
    "conv2d": ((1, 2, 4, 3), (2, 1, 2, 2)),
    "conv3d": ((1, 2, 3, 2, 3), (2, 1, 2, 2, 2)),
    "conv_transpose1d": ((1, 2, 4), (2, 1, 3)),
    "conv_transpose2d": ((1, 2, 3, 2), (2, 1, 2, 2)),
    "conv_transpose3d": ((1, 2, 2, 2, 2), (2, 1, 2, 2, 2)),
}


@pytest.fixture
def recording(server: RunningServer) -> Iterator[RecordingClient]:
    with RecordingClient(server.address) as client:
        yield client


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64"])
@pytest.mark.parametrize(("name", "input", "weight", "channels", "parameters"), CONFIGURATIONS, ids=str)
def test_outputs_and_gradients_are_torchs(
    client: Client,
    backend: str,
    dtype: str,
    name: str,
    input: tuple[int, ...],
    weight: tuple[int, ...],
    channels: int,
    parameters: dict[str, Any],
) -> None:
    operands = drawn(input, weight, *([(channels,)] if channels else []), dtype=getattr(torch, dtype))
    output = getattr(functional, name)(*operands, client=client, backend=backend, **parameters)
    assert_same(output, getattr(torch.nn.functional, name)(*operands, **parameters), operands)


@pytest.mark.parametrize("dtype", ["float64", "complex128"])
@pytest.mark.parametrize("name", OPERANDS)
def test_differences_of_outputs_confirm_the_gradients(client: Client, name: str, dtype: str) -> None:
    parameters = {"stride": 2, "padding": 1, "groups": 2, **({"output_padding": 1} if "transpose" in name else {})}

    def function(*operands: Any) -> Any:  # noqa: ANN401 - tensors
        return getattr(functional, name)(*operands, client=client, **parameters)

    assert torch.autograd.gradcheck(function, drawn(*OPERANDS[name], (2,), dtype=getattr(torch, dtype)))


@pytest.mark.parametrize(
    "more",
    [
        {"padding": "causal", "stride": 2},
        {"padding": "full"},
        {"padding": [(2, -1), (0, 1)]},
        {"padding": 3, "padding_mode": "symmetric"},
        {"padding": 1, "padding_mode": "constant", "padding_value": 2.0},
        {"flip": True, "input_dilation": 2},
    ],
    ids=str,
)
def test_what_torch_lacks_is_differentiated_too(client: Client, more: dict[str, Any]) -> None:
    operands = drawn((1, 2, 4, 3), (2, 2, 2, 2), (2,))
    assert torch.autograd.gradcheck(lambda *each: functional.conv2d(*each, client=client, **more), operands)


def test_gradients_of_views_and_of_conjugates_reach_what_they_view(client: Client) -> None:
    x, w = operands = drawn((6, 5, 2, 2), (2, 3, 3, 3), dtype=torch.complex128)
    turned, conjugated = x.permute(3, 2, 1, 0)[..., ::2], w.conj().transpose(0, 1)[:, :, :1]
    assert_same(
        functional.conv2d(turned[:, :3], conjugated[..., :2], client=client),
        torch.nn.functional.conv2d(turned[:, :3], conjugated[..., :2]),
        operands,
    )


@pytest.mark.parametrize(
    "wanted", [("input",), ("weight",), ("bias",), ("input", "bias"), ("input", "weight", "bias")], ids=str
)
def test_only_the_gradients_that_are_needed_are_asked_for(recording: RecordingClient, wanted: tuple[str, ...]) -> None:
    operands = dict(zip(("input", "weight", "bias"), drawn((1, 2, 5), (3, 2, 3), (3,)), strict=True))
    for name, operand in operands.items():
        operand.requires_grad_(name in wanted)
    torch.autograd.backward(functional.conv1d(**operands, client=recording).sum())
    assert recording.asked == [wanted]
    assert tuple(name for name, operand in operands.items() if operand.grad is not None) == wanted


def test_nothing_is_recorded_where_nothing_wants_a_gradient(client: Client) -> None:
    x, w = drawn((1, 2, 5), (3, 2, 3))
    with torch.no_grad():
        assert not functional.conv1d(x, w, client=client).requires_grad
    assert not functional.conv1d(x.detach(), w.detach(), client=client).requires_grad


def test_a_forward_pass_by_fft_has_the_gradients_of_direct_sums(client: Client) -> None:
    operands = drawn((1, 1, 40), (1, 1, 9))
    output = functional.conv1d(*operands, client=client, algorithm="fft")
    assert_same(output, torch.nn.functional.conv1d(*operands), operands)


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_gives_the_types_that_torch_gives(client: Client, name: str, dtype: Any) -> None:  # noqa: ANN401 - torch's
    x, w = drawn(*OPERANDS[name], dtype=torch.float32)
    b = drawn((1 if "transpose" in name else 2,), dtype=torch.bfloat16)[0]
    with torch.autocast("cpu", dtype):
        output = getattr(functional, name)(x, w, b, groups=2 if "transpose" not in name else 1, client=client)
        expected = getattr(torch.nn.functional, name)(x, w, b, groups=2 if "transpose" not in name else 1)
    assert output.dtype == expected.dtype == dtype
    grads = torch.autograd.grad(output.float().sum(), (x, w, b))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.float32, torch.bfloat16]
    torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02)


def test_autocast_leaves_float64_as_it_is(client: Client) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert functional.conv1d(*drawn((1, 2, 5), (3, 2, 3)), client=client).dtype == torch.float64


def test_what_is_wrong_is_named_as_the_client_names_it(client: Client) -> None:
    x, w = drawn((1, 2, 5, 5), (3, 2, 3, 3))
    with pytest.raises(InvalidConvolution, match="conv1d takes 3") as caught:
        functional.conv1d(x, w, client=client)
    assert caught.value.field == "weight.shape"
    with pytest.raises(InvalidConvolution, match="input has 1 channel"):
        functional.conv2d(x[:, :1], w, client=client)
    with pytest.raises(InvalidConvolution, match="float32"):
        functional.conv2d(x, w.float(), client=client)


def test_an_activation_is_computed_but_refused_where_gradients_are_wanted(client: Client) -> None:
    x, w = drawn((1, 2, 5), (3, 2, 3))
    with pytest.raises(InvalidConvolution, match="activation is 'relu'") as caught:
        functional.conv1d(x, w, client=client, activation="relu")
    assert caught.value.field == "activation"
    with torch.no_grad():
        output = functional.conv1d(x, w, client=client, activation="relu")
        torch.testing.assert_close(output, torch.nn.functional.conv1d(x, w).relu())


@pytest.mark.parametrize("plain_sum", [True, False])
def test_a_second_derivative_is_refused_and_never_silently_left_out(client: Client, *, plain_sum: bool) -> None:
    x, w = drawn((1, 2, 5), (3, 2, 3))
    output = functional.conv1d(x, w, client=client)
    scalar = output.sum() if plain_sum else output.square().sum()
    (grad,) = torch.autograd.grad(scalar, x, create_graph=True)
    expected = torch.nn.functional.conv1d(x, w)
    (expected_grad,) = torch.autograd.grad(expected.sum() if plain_sum else expected.square().sum(), x)
    torch.testing.assert_close(grad, expected_grad)
    with pytest.raises(Unsupported, match="first derivatives alone"):
        torch.autograd.backward(scalar + grad.square().sum())


def test_what_happens_to_the_backward_call_is_raised_by_backward(serve: Callable[..., RunningServer]) -> None:
    running = serve("--backend=reference", "--max-work=200")
    with Client(running.address) as client:
        x, w = drawn((1, 2, 10), (3, 2, 3))
        output = functional.conv1d(x, w, client=client).sum()
        with pytest.raises(LimitExceeded) as caught:
            torch.autograd.backward(output, retain_graph=True)
        assert (caught.value.value, caught.value.limit) == (2 * 8 * 3 * 6, 200)
        assert running.stop() == 0
        with pytest.raises(ServiceUnavailable):
            torch.autograd.backward(output)
