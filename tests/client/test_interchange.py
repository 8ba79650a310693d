"""Arrays of every kind in, and the fitting kind out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from tests.contract import ANSWER, IMAGE, KERNEL

from convolver.client._interchange import like, to_array
from convolver.core import dtypes
from convolver.core.errors import InvalidConvolution
from convolver.core.tensors import to_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convolver.client import Client

    Array = NDArray[Any]


@pytest.fixture
def torch() -> Any:  # noqa: ANN401 - a module that may not be there
    return pytest.importorskip("torch", reason="torch is not installed: its tensors are not tested")


class Speaks:
    """An array of a library that nobody knows, which has one way to hand it over."""

    def __init__(self, array: Array) -> None:
        self.array = array


class Arraylike(Speaks):
    def __array__(self, dtype: object = None, copy: object = None) -> Array:
        return self.array


class Dlpack(Speaks):
    def __dlpack__(self, **how: Any) -> Any:  # noqa: ANN401 - a capsule
        return self.array.__dlpack__(**how)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_a_numpy_array_is_taken_as_it_is() -> None:
    assert to_array(IMAGE) is IMAGE


@pytest.mark.parametrize("kind", [Arraylike, Dlpack])
def test_an_array_of_another_library_is_taken_by_its_memory(kind: type[Speaks]) -> None:
    assert np.shares_memory(to_array(kind(IMAGE)), IMAGE)


@pytest.mark.parametrize("kind", [Arraylike, Dlpack])
def test_an_array_of_another_library_gives_a_numpy_array(client: Client, kind: type[Speaks]) -> None:
    output = client.conv2d(kind(IMAGE), kind(KERNEL))
    assert type(output) is np.ndarray
    np.testing.assert_array_equal(output, ANSWER)


def test_lists_are_arrays_too(client: Client) -> None:
    output = client.conv1d([[[1, 2, 3]]], [[[1, 1]]])
    assert output.tolist() == [[[3, 5]]]
    assert output.dtype == np.int64


ODD = {
    "strided": IMAGE.repeat(2, -1)[..., ::2],
    "reversed": IMAGE[..., ::-1].copy()[..., ::-1],
    "transposed": np.ascontiguousarray(IMAGE.swapaxes(2, 3)).swapaxes(2, 3),
    "broadcast": np.broadcast_to(IMAGE[0], (1, 1, 3, 3)),
    "big-endian": IMAGE.astype(">f4"),
    "big-endian and strided": IMAGE.astype(">f4").repeat(2, -1)[..., ::2],
    "unaligned": np.frombuffer(b"\0" + IMAGE.tobytes(), np.uint8)[1:].view(np.float32).reshape(IMAGE.shape),
    "read-only": np.frombuffer(IMAGE.tobytes(), np.float32).reshape(IMAGE.shape),
    "a subclass": np.ma.masked_array(IMAGE),
    "in Fortran's order": np.asfortranarray(IMAGE),
}


@pytest.mark.parametrize("image", ODD.values(), ids=ODD.keys())
def test_an_array_may_lie_in_memory_as_it_likes(client: Client, image: Array) -> None:
    np.testing.assert_array_equal(client.conv2d(image, KERNEL), ANSWER)
    np.testing.assert_array_equal(client.conv2d(KERNEL, image[..., :2, :2]), [[[[19]]]])


def test_big_endian_bytes_travel_little_endian() -> None:
    assert bytes(to_bytes(np.array([1.0], ">f4"))) == bytes(to_bytes(np.array([1.0], "<f4")))


def test_a_number_alone_is_an_array_without_dimensions(client: Client) -> None:
    assert to_array(np.float32(3)).shape == to_array(3.0).shape == ()
    with pytest.raises(InvalidConvolution, match="0 dimensions"):
        client.convolve(np.float32(3), KERNEL)


@pytest.mark.parametrize(
    "value",
    ["text", np.array(["a"]), np.array([None]), np.zeros(1, np.longdouble)],
    ids=["text", "texts", "objects", "long double"],
)
def test_what_the_contract_has_no_type_for_is_refused_by_name(client: Client, value: object) -> None:
    with pytest.raises(InvalidConvolution, match=r"input has dtype .*, which is none of bool"):
        client.convolve(value, KERNEL)


@pytest.mark.parametrize("name", dtypes.TABLE)
def test_the_type_comes_back_as_it_went(client: Client, name: str) -> None:
    image, kernel = np.ones((1, 1, 3), dtypes.TABLE[name].numpy), np.ones((1, 1, 1), dtypes.TABLE[name].numpy)
    output = client.conv1d(image, kernel)
    assert (type(output), output.dtype) == (np.ndarray, dtypes.TABLE[name].numpy)
    assert output.flags.writeable
    assert output.tobytes() == image.tobytes()


def torchs(torch: Any) -> dict[str, Any]:  # noqa: ANN401 - a module
    """torch's types that the contract has."""
    return {name: getattr(torch, name) for name in dtypes.TABLE}


@pytest.mark.parametrize("name", dtypes.TABLE)
def test_a_tensor_gives_a_tensor_of_its_type(client: Client, torch: Any, name: str) -> None:  # noqa: ANN401 - a module
    image = torch.tensor([[[0, 1, 1]]]).to(torchs(torch)[name])
    output = client.conv1d(image, torch.ones(1, 1, 1).to(torchs(torch)[name]))
    assert type(output) is torch.Tensor
    assert (output.dtype, output.device, output.requires_grad) == (image.dtype, image.device, False)
    assert output.view(torch.uint8).tolist() == image.view(torch.uint8).tolist()


@pytest.mark.parametrize("name", dtypes.TABLE)
def test_every_type_of_torch_becomes_numpys(torch: Any, name: str) -> None:  # noqa: ANN401 - a module
    array = to_array(torch.tensor([0, 1]).to(torchs(torch)[name]))
    assert array.dtype == dtypes.TABLE[name].numpy
    assert array.astype(np.complex128).tolist() == [0, 1]
    back = like(array, torch.zeros(()))
    assert back.dtype == torchs(torch)[name]


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "float32"])
def test_bits_are_kept_both_ways(torch: Any, name: str) -> None:  # noqa: ANN401 - a module
    row = dtypes.TABLE[name]
    every = np.arange(256, dtype=np.uint8).repeat(row.itemsize)
    tensor = torch.from_numpy(every.copy()).view(torchs(torch)[name])
    assert to_array(tensor).tobytes() == every.tobytes()
    assert like(every.view(row.numpy), tensor).view(torch.uint8).numpy().tobytes() == every.tobytes()


def test_a_tensor_is_taken_by_its_memory(torch: Any) -> None:  # noqa: ANN401 - a module
    for dtype in (torch.float32, torch.bfloat16):
        tensor = torch.zeros(4, dtype=dtype)
        array = to_array(tensor)
        tensor[2] = 1
        assert array.tolist() == [0, 0, 1, 0]


def test_a_tensor_that_is_differentiated_is_detached(client: Client, torch: Any) -> None:  # noqa: ANN401 - a module
    image = torch.from_numpy(IMAGE.copy()).requires_grad_()
    output = client.conv2d(image * 1, torch.nn.Parameter(torch.from_numpy(KERNEL.copy())))
    assert (output.requires_grad, output.grad_fn) == (False, None)
    np.testing.assert_array_equal(output.numpy(), ANSWER)


def test_a_tensor_may_lie_in_memory_as_it_likes(client: Client, torch: Any) -> None:  # noqa: ANN401 - a module
    image = torch.from_numpy(IMAGE.swapaxes(2, 3).copy()).transpose(2, 3)
    assert not image.is_contiguous()
    np.testing.assert_array_equal(client.conv2d(image, torch.from_numpy(KERNEL)).numpy(), ANSWER)
    half = image.bfloat16().expand(2, 1, 3, 3)
    assert client.conv2d(half, torch.from_numpy(KERNEL).bfloat16()).shape == (2, 1, 2, 2)


def test_the_lazy_conjugate_of_a_tensor_is_resolved(client: Client, torch: Any) -> None:  # noqa: ANN401 - a module
    image = torch.tensor([[[1 + 2j, 3 - 1j]]]).conj()
    assert image.is_conj()
    one = torch.ones(1, 1, 1, dtype=image.dtype)
    assert client.conv1d(image, one).tolist() == [[[1 - 2j, 3 + 1j]]]
    assert client.conv1d(image.imag, one.real).tolist() == [[[-2, 1]]]  # whose sign is lazy as well


def test_the_input_decides_what_comes_back(client: Client, torch: Any) -> None:  # noqa: ANN401 - a module
    assert type(client.conv2d(IMAGE, torch.from_numpy(KERNEL))) is np.ndarray
    assert type(client.conv2d(torch.from_numpy(IMAGE), KERNEL)) is torch.Tensor


def test_a_tensor_that_comes_back_is_the_callers_to_write_to(client: Client, torch: Any) -> None:  # noqa: ANN401 - a module
    image = torch.from_numpy(IMAGE.copy())
    output = client.conv2d(image, KERNEL)
    output += 1
    np.testing.assert_array_equal(output.numpy(), ANSWER + 1)


def test_a_bias_may_be_of_any_library(client: Client, torch: Any) -> None:  # noqa: ANN401 - a module
    for bias in (np.array([100], np.float32), torch.tensor([100.0]), Dlpack(np.array([100], np.float32))):
        np.testing.assert_array_equal(client.conv2d(IMAGE, KERNEL, bias), ANSWER + 100)


def test_ml_dtypes_arrays_are_as_good_as_numpys(client: Client) -> None:
    output = client.conv2d(IMAGE.astype(ml_dtypes.bfloat16), KERNEL.astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(output.astype(np.float32), ANSWER)
