"""The output in an array of the caller's own, in both colours, whichever way it travels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from tests.client.colours import by_async, by_sync, colours
from tests.contract import ANSWER, IMAGE, KERNEL

from convolver.client import Client, Conv, Pool, _chunks, _requests
from convolver.core.errors import InvalidConvolution

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.client.colours import Called
    from tests.conftest import RunningServer

ROW, TAPS = np.arange(8, dtype=np.float32).reshape(1, 1, 8), np.ones((1, 1, 2), np.float32)
CUBE, BOX = np.arange(27, dtype=np.float32).reshape(1, 1, 3, 3, 3), np.ones((1, 1, 2, 2, 2), np.float32)

CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "convolve": lambda client, out: client.convolve(IMAGE, KERNEL, out=out),
    "conv1d": lambda client, out: client.conv1d(ROW, TAPS, out=out),
    "conv2d": lambda client, out: client.conv2d(IMAGE, KERNEL, out=out),
    "conv3d": lambda client, out: client.conv3d(CUBE, BOX, out=out),
    "conv_transpose1d": lambda client, out: client.conv_transpose1d(ROW, TAPS, out=out),
    "conv_transpose2d": lambda client, out: client.conv_transpose2d(IMAGE, KERNEL, out=out),
    "conv_transpose3d": lambda client, out: client.conv_transpose3d(CUBE, BOX, out=out),
    "a layer": lambda client, out: client.layer(KERNEL)(IMAGE, out=out),
    "a stack": lambda client, out: client.stack([Conv(KERNEL), Pool("max", 2)])(IMAGE, out=out),
}

ANSWERS: dict[str, Callable[[Any, Any], Any]] = {
    "run": lambda client, out: client.run(IMAGE, KERNEL, out=out),
    "a layer": lambda client, out: client.layer(KERNEL).run(IMAGE, out=out),
    "a stack": lambda client, out: client.stack([Conv(KERNEL), Pool("max", 1)]).run(IMAGE, out=out),
}


@pytest.fixture(params=["in one message", "in chunks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both."""
    if request.param == "in chunks":
        monkeypatch.setattr(_requests, "LARGEST_UNARY", -1)
        monkeypatch.setattr(_chunks, "CHUNK", 7)


@colours
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", CALLS)
def test_the_output_is_the_callers_own_object(server: RunningServer, called: Called, name: str) -> None:
    expected = called(server.address, lambda client: CALLS[name](client, None))
    out = np.full_like(expected, -1)
    assert called(server.address, lambda client: CALLS[name](client, out)) is out
    np.testing.assert_array_equal(out, expected)


@colours
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_has_it(server: RunningServer, called: Called, name: str) -> None:
    out = np.full_like(ANSWER, -1)
    answer = called(server.address, lambda client: ANSWERS[name](client, out))
    assert answer.output is out
    assert answer.plan.output_shape == out.shape
    np.testing.assert_array_equal(out, ANSWER)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", ["bool", "int8", "complex64", "float16", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2])
def test_every_kind_of_type_is_written(client: Client, dtype: Any) -> None:  # noqa: ANN401 - whatever NumPy takes
    image, kernel = np.ones((1, 1, 4), dtype), np.ones((1, 1, 2), dtype)
    out = np.zeros((1, 1, 3), dtype)
    client.conv1d(image, kernel, out=out)
    np.testing.assert_array_equal(out.astype(np.complex128), 1 if dtype == "bool" else 2)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "bool"])
def test_a_tensor_of_torch_is_written(client: Client, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is what is tested")
    kind = getattr(torch, dtype)
    image, kernel, out = torch.ones(1, 1, 4).to(kind), torch.ones(1, 1, 2).to(kind), torch.zeros(1, 1, 3).to(kind)
    assert client.conv1d(image, kernel, out=out) is out
    assert torch.equal(out.float(), torch.full((1, 1, 3), 1.0 if dtype == "bool" else 2.0))
    array = np.zeros((1, 1, 3), np.float32)
    assert client.conv1d(torch.ones(1, 1, 4), torch.ones(1, 1, 2), out=array) is array
    assert array.tolist() == [[[2, 2, 2]]]


def read_only() -> Any:  # noqa: ANN401 - an array
    array = np.zeros((1, 1, 2, 2), np.float32)
    array.flags.writeable = False
    return array


WRONG: dict[str, tuple[Any, str]] = {
    "another shape": (np.zeros((1, 1, 4), np.float32), r"float32 \(1, 1, 4\).* float32 \(1, 1, 2, 2\)"),
    "another type": (np.zeros((1, 1, 2, 2)), r"float64 \(1, 1, 2, 2\).* float32 \(1, 1, 2, 2\)"),
    "another byte order": (np.zeros((1, 1, 2, 2), ">f4"), ">f4"),
    "gaps": (np.zeros((1, 1, 2, 4), np.float32)[..., ::2], "row-major"),
    "columns first": (np.zeros((1, 1, 2, 2), np.float32, "F"), "row-major"),
    "read-only": (read_only(), "writable"),
    "a list": ([[[[0, 0], [0, 0]]]], "builtins.list"),
    "its own input": (IMAGE.reshape(-1)[:4].reshape(1, 1, 2, 2), "shares memory"),
}


def _with(call: Callable[[Any, Any], Any], out: Any, client: Any) -> Any:  # noqa: ANN401 - of any kind
    return call(client, out)


@pytest.mark.parametrize("called", [by_sync, by_async])
@pytest.mark.parametrize(("out", "text"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_written_to_is_refused_before_anything_is_sent(called: Called, out: Any, text: str) -> None:  # noqa: ANN401 - of any kind
    calls = [CALLS["convolve"], CALLS["a layer"], lambda client, out: client.stack([Conv(KERNEL)])(IMAGE, out=out)]
    for call in calls:
        with pytest.raises(InvalidConvolution, match=text) as caught:
            called("127.0.0.1:1", partial(_with, call, out))
        assert caught.value.field == "out"


def test_tensors_that_cannot_be_written_to_are_refused() -> None:
    torch = pytest.importorskip("torch", reason="torch is what is tested")
    wrong = (
        torch.zeros(1, 1, 2, 2, requires_grad=True),
        torch.zeros(1, 1, 2, 4)[..., ::2],
        torch.zeros(1, 1, 2, 2, device="meta"),
        torch.zeros(1, 1, 2, 2).to_sparse(),
        torch.zeros(1, 1, 2, 2, dtype=torch.complex64).imag,
    )
    for out in wrong:
        with Client("127.0.0.1:1") as client, pytest.raises(InvalidConvolution) as caught:
            client.convolve(IMAGE, KERNEL, out=out)
        assert caught.value.field == "out"


def test_an_input_that_is_copied_may_share_its_memory(client: Client) -> None:
    memory = np.arange(8, dtype=np.float32)
    client.conv1d(memory[::-1][None, None], TAPS, out=memory[None, None, :7])
    np.testing.assert_array_equal(memory, [13, 11, 9, 7, 5, 3, 1, 7])
