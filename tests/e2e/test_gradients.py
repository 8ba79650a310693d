"""Gradients behind the service, on both back ends; their values are held against oracles in tests/core."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import convolution, refused

from convolver.client import Client
from convolver.core import request_codec
from convolver.core.errors import InvalidConvolution, LimitExceeded, Unsupported
from convolver.core.gradients import Wanted
from convolver.core.tensors import header
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from tests.conftest import RunningServer


torch = pytest.importorskip("torch")

each_backend = pytest.mark.parametrize("backend", ["reference", "torch:cpu"])

CONFIGURATIONS: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((2, 3, 20), (4, 3, 5), {"stride": 2, "padding": 2}),
    ((2, 4, 9, 8), (6, 2, 3, 3), {"groups": 2, "dilation": 2, "padding": (3, 2)}),
    ((1, 4, 6, 6, 6), (4, 1, 3, 3, 3), {"groups": 4}),
    ((2, 4, 7, 7), (4, 3, 3, 3), {"transposed": True, "stride": 2, "padding": 1, "output_padding": 1}),
]


def drawn(*shapes: tuple[int, ...]) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape) for shape in shapes]


def by_autograd(x: Any, w: Any, g: Any, parameters: dict[str, Any]) -> list[NDArray[np.float64]]:  # noqa: ANN401 - arrays
    """Of torch's own convolution."""
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    given = dict(parameters)
    name = f"conv{'_transpose' if given.pop('transposed', False) else ''}{x.ndim - 2}d"
    output = getattr(torch.nn.functional, name)(*tensors, **given)
    return [grad.numpy() for grad in torch.autograd.grad(output, tensors, torch.tensor(g))]


@each_backend
@pytest.mark.parametrize(("input", "weight", "parameters"), CONFIGURATIONS, ids=str)
def test_they_are_torchs(client: Client, backend: str, input: Any, weight: Any, parameters: Any) -> None:  # noqa: ANN401 - as callers write it
    x, w = drawn(input, weight)
    (g,) = drawn(client.plan(input, weight, "float64", **parameters).output_shape)
    grads = client.gradients(x, w, g, bias=True, backend=backend, **parameters)
    for ours, theirs in zip((grads.input, grads.weight), by_autograd(x, w, g, parameters), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(grads.bias, g.sum((0, *range(2, g.ndim))), rtol=1e-12, atol=1e-12)
    assert grads.plan.backend == backend
    assert grads.plan.macs == 2 * client.plan(input, weight, "float64", **parameters).macs


@each_backend
@pytest.mark.parametrize(
    ("wrt", "bias"),
    [(("input",), False), ("weight", False), (("input", "weight"), False), ((), True), (("input",), True)],
    ids=str,
)
def test_only_what_is_asked_for_comes_back(client: Client, backend: str, wrt: tuple[str, ...], *, bias: bool) -> None:
    x, w, g = drawn((1, 2, 5, 5), (3, 2, 3, 3), (1, 3, 3, 3))
    everything = client.gradients(x, w, g, bias=True, backend=backend)
    some = client.gradients(x, w, g, wrt=wrt, bias=bias, backend=backend)
    for name, asked in (("input", "input" in wrt), ("weight", "weight" in wrt), ("bias", bias)):
        one, whole = getattr(some, name), getattr(everything, name)
        assert (one is not None) == asked
        if asked:
            np.testing.assert_allclose(one, whole, rtol=1e-12, atol=1e-12)


@each_backend
def test_a_kernel_is_learnt_from_its_own_outputs(client: Client, backend: str) -> None:
    (x, kernel), learnt = drawn((4, 1, 8, 8), (1, 1, 3, 3)), np.zeros((1, 1, 3, 3))
    target = client.conv2d(x, kernel)
    for _ in range(200):
        error = client.conv2d(x, learnt, backend=backend) - target
        learnt -= 0.2 * client.gradients(x, learnt, 2 * error / error.size, wrt="weight", backend=backend).weight
    np.testing.assert_allclose(learnt, kernel, atol=1e-3)


def test_a_torch_tensor_in_gives_torch_tensors_out(client: Client) -> None:
    x, w, g = (torch.tensor(a) for a in drawn((1, 2, 5), (3, 2, 3), (1, 3, 3)))
    grads = client.gradients(x, w, g, bias=True)
    assert all(isinstance(grad, torch.Tensor) for grad in (grads.input, grads.weight, grads.bias))


REFUSED: list[tuple[Callable[..., Any], str, str]] = [
    (lambda x, w, g: (x, w, g[..., 1:], {}), "gradients.grad_output.shape", "(1, 3, 3, 2)"),
    (lambda x, w, g: (x, w, g.astype(np.float32), {}), "gradients.grad_output.dtype", "float32"),
    (lambda x, w, g: (x, w, g, {"activation": "relu"}), "activation", "relu"),
    (lambda *each: (*(a.astype(np.int64) for a in each), {}), "input.dtype", "int64"),
]


@pytest.mark.parametrize(("change", "field", "said"), REFUSED, ids=[field for _, field, _ in REFUSED])
def test_what_is_wrong_is_named_alike_by_the_sdk_and_both_rpcs(
    client: Client, server: RunningServer, change: Callable[..., Any], field: str, said: str
) -> None:
    x, w, g, parameters = change(*drawn((1, 2, 5, 5), (3, 2, 3, 3), (1, 3, 3, 3)))
    with pytest.raises(InvalidConvolution) as caught:
        client.gradients(x, w, g, **parameters)
    assert caught.value.field == field
    assert said in caught.value.message
    message = _asked(x, w, g, parameters)
    with grpc.insecure_channel(server.address) as channel:
        for method, kind in (("Convolve", pb.ConvolveRequest), ("Plan", pb.PlanRequest)):
            answer = refused(channel, kind(convolution=message).SerializeToString(), method)
            assert (answer.code, answer.text) == (grpc.StatusCode.INVALID_ARGUMENT, caught.value.message)


def _asked(x: Any, w: Any, g: Any, parameters: dict[str, Any]) -> Any:  # noqa: ANN401 - arrays, and a message
    input, weight, grad_output = (header(array, "array") for array in (x, w, g))
    wanted = Wanted(input=True, weight=True, bias=True)
    return request_codec.single_to_proto(input, weight, None, parameters, (wanted, grad_output))  # type: ignore[arg-type]  # of any kind


def test_values_that_are_needed_may_not_be_omitted(server: RunningServer) -> None:
    message = convolution((1, 1, 4, 4), (1, 1, 3, 3))
    message.gradients.weight = True
    message.gradients.grad_output.CopyFrom(message.input)
    message.gradients.grad_output.shape[:] = [1, 1, 2, 2]
    message.input_source.omitted = True
    message.layers[0].weight_source.omitted = True
    request = pb.ConvolveRequest(convolution=message, data=[bytes(16)])
    with grpc.insecure_channel(server.address) as channel:
        answer = refused(channel, request.SerializeToString(), "Convolve")
    assert answer.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "input is omitted, but its values are needed" in answer.text


@pytest.mark.parametrize("wrt", ["bias", ("input", "output")])
def test_wrt_names_operands(client: Client, wrt: Any) -> None:  # noqa: ANN401 - wrong words
    with pytest.raises(InvalidConvolution, match="none of input, weight") as caught:
        client.gradients(*drawn((1, 1, 4), (1, 1, 2), (1, 1, 3)), wrt=wrt)
    assert caught.value.field == "wrt"


def test_nothing_wanted_and_an_fft_are_refused(client: Client) -> None:
    operands = drawn((1, 1, 4), (1, 1, 2), (1, 1, 3))
    with pytest.raises(InvalidConvolution, match="none of input, weight and bias"):
        client.gradients(*operands, wrt=())
    with pytest.raises(Unsupported, match="by direct sums alone"):
        client.gradients(*operands, algorithm="fft")


def test_their_limits_are_those_of_what_they_compute(serve: Callable[..., RunningServer]) -> None:
    running = serve("--backend=reference", "--max-work=5000")
    x, w, g = drawn((1, 2, 10, 10), (3, 2, 3, 3), (1, 3, 8, 8))
    with Client(running.address) as client:
        assert client.gradients(x, w, g, wrt="weight").plan.macs == 64 * 3 * 18
        with pytest.raises(LimitExceeded) as caught:
            client.gradients(x, w, g)
    assert (caught.value.value, caught.value.limit) == (2 * 64 * 3 * 18, 5000)
    assert running.stop() == 0
