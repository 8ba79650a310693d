"""Arrays as the bytes that travel, and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.core.operations import Array, usual

from convolver.core.dtypes import TABLE
from convolver.core.errors import InvalidConvolution, Unsupported
from convolver.core.operation import Tensor
from convolver.core.tensors import Sourced, from_bytes, header, inline, to_bytes
from convolver.v1 import tensor_pb2

RNG = np.random.default_rng(0)
each_type = pytest.mark.parametrize("dtype", TABLE)


def sample(dtype: str, shape: tuple[int, ...] = (2, 3, 4)) -> Array:
    return usual(np.random.default_rng(1), dtype, shape)


@each_type
@pytest.mark.parametrize("shape", [(2, 3, 4), (0, 3), (), (1,), (3, 0, 2)], ids=str)
def test_an_array_comes_back_with_its_bits(dtype: str, shape: tuple[int, ...]) -> None:
    array = sample(dtype, shape)
    tensor = header(array, "input")
    assert tensor == (dtype, shape)
    again = from_bytes(to_bytes(array), tensor, "input")
    assert (again.dtype, again.shape) == (array.dtype, shape)
    assert again.tobytes() == array.tobytes()


def test_bytes_are_row_major_and_little_endian() -> None:
    array = np.array([[1, 2], [3, 256]], np.uint16)
    expected = bytes([1, 0, 2, 0, 3, 0, 0, 1])
    assert bytes(to_bytes(array)) == expected
    assert bytes(to_bytes(array.astype(">u2"))) == expected
    assert bytes(to_bytes(np.asfortranarray(array))) == expected
    assert bytes(to_bytes(np.repeat(array, 2, axis=0)[::2])) == expected
    assert bytes(to_bytes(array[:, ::-1])[:4]) == bytes([2, 0, 1, 0])


def test_a_complex_number_is_its_real_then_its_imaginary_part() -> None:
    assert bytes(to_bytes(np.array([1 + 2j], np.complex64))) == np.array([1, 2], "<f4").tobytes()


def test_nothing_is_copied_that_need_not_be() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.shares_memory(np.frombuffer(to_bytes(array), np.uint8), array)
    again = from_bytes(to_bytes(array), header(array, "x"), "x")
    assert np.shares_memory(again, array)


def test_what_was_read_cannot_be_written_to() -> None:
    for dtype in ("float32", "bool"):
        data = bytearray(4 if dtype == "float32" else 1)
        array = from_bytes(memoryview(data), Tensor(TABLE[dtype].name, (1,)), "input")
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


@pytest.mark.parametrize("offset", [1, 3, 7])
def test_views_need_not_be_aligned(offset: int) -> None:
    array = RNG.standard_normal(5)
    data = memoryview(b"\0" * offset + array.tobytes())[offset:]
    np.testing.assert_array_equal(from_bytes(data, Tensor("float64", (5,)), "input"), array)


@each_type
@settings(max_examples=20)
@given(shape=st.lists(st.integers(0, 3), max_size=4), difference=st.sampled_from([-2, -1, 1, 2, 100]))
def test_another_number_of_bytes_is_refused_with_both_numbers(dtype: str, shape: list[int], difference: int) -> None:
    expected = int(np.prod(shape)) * TABLE[dtype].itemsize
    sent = max(0, expected + difference)
    if sent == expected:
        return
    tensor = Tensor(TABLE[dtype].name, tuple(shape))
    with pytest.raises(InvalidConvolution, match=f"takes {expected} bytes, but its data has {sent}") as caught:
        from_bytes(memoryview(bytes(sent)), tensor, "weight")
    assert caught.value.field == "weight"
    assert f"weight {tuple(shape)} of {dtype}" in caught.value.message


def test_a_huge_declared_shape_is_compared_in_whole_numbers() -> None:
    side = 2**31 - 1
    with pytest.raises(InvalidConvolution, match=f"takes {4 * side**4} bytes, but its data has 0"):
        from_bytes(memoryview(b""), Tensor("float32", (side,) * 4), "input")


@pytest.mark.parametrize("byte", [2, 127, 255])
def test_a_bool_is_one_byte_0_or_1(byte: int) -> None:
    good = from_bytes(memoryview(bytes([0, 1, 1])), Tensor("bool", (3,)), "input")
    assert good.tolist() == [False, True, True]
    with pytest.raises(InvalidConvolution, match=f"input has the byte {byte} at 2; a bool is 0 or 1"):
        from_bytes(memoryview(bytes([0, 1, byte, byte])), Tensor("bool", (4,)), "input")


@pytest.mark.parametrize(
    "dtype", [np.float128, "U3", "O", "M8[s]", "V4", ml_dtypes.float8_e4m3b11fnuz, ml_dtypes.int4], ids=str
)
def test_a_type_that_the_contract_lacks_is_refused_by_field(dtype: type) -> None:
    with pytest.raises(InvalidConvolution, match=f"weight has dtype {np.dtype(dtype)}".replace("[", r"\[")) as caught:
        header(np.zeros(2, dtype), "weight")
    assert caught.value.field == "weight"


def test_all_names_of_one_type_are_that_type() -> None:
    assert header(np.zeros(1, np.longlong), "x").dtype == header(np.zeros(1, np.int64), "x").dtype == "int64"
    assert header(np.zeros(1, ">c16"), "x").dtype == "complex128"


NOWHERE = tensor_pb2.TensorSource()
PAIR, BYTE, EMPTY = Tensor("uint8", (2,)), Tensor("uint8", (1,)), Tensor("uint8", (0,))
ENTRIES = [memoryview(b"\1\2"), memoryview(b"\3")]


def at(index: int) -> tensor_pb2.TensorSource:
    return tensor_pb2.TensorSource(index=index)


def test_without_sources_entries_are_taken_in_the_order_of_tensors() -> None:
    arrays = inline({"weight": Sourced(PAIR, NOWHERE), "input": Sourced(BYTE, NOWHERE)}, ENTRIES)
    assert {name: array.tolist() for name, array in arrays.items()} == {"weight": [1, 2], "input": [3]}


def test_an_index_names_its_entry_from_0() -> None:
    arrays = inline({"weight": Sourced(BYTE, at(1)), "input": Sourced(PAIR, at(0))}, ENTRIES)
    assert {name: array.tolist() for name, array in arrays.items()} == {"weight": [3], "input": [1, 2]}


def test_an_empty_tensor_has_an_empty_entry() -> None:
    arrays = inline({"weight": Sourced(PAIR, NOWHERE), "input": Sourced(EMPTY, NOWHERE)}, [ENTRIES[0], memoryview(b"")])
    assert arrays["input"].shape == (0,)
    with pytest.raises(InvalidConvolution, match="takes 0 bytes, but its data has 1"):
        inline({"weight": Sourced(PAIR, NOWHERE), "input": Sourced(EMPTY, NOWHERE)}, ENTRIES)


def test_an_entry_that_is_missing_is_refused_with_both_numbers() -> None:
    for source in (NOWHERE, at(1), at(2**32 - 1)):
        with pytest.raises(
            InvalidConvolution, match=r"input is at data\[\d+\], but the message has 1 entries"
        ) as caught:
            inline({"weight": Sourced(PAIR, NOWHERE), "input": Sourced(BYTE, source)}, ENTRIES[:1])
        assert caught.value.field == "input_source"


def test_an_entry_may_be_named_once_only() -> None:
    both = {"weight": Sourced(PAIR, at(0)), "input": Sourced(PAIR, at(0))}
    with pytest.raises(InvalidConvolution, match=r"input is at data\[0\], and so is weight") as caught:
        inline(both, ENTRIES)
    assert caught.value.field == "input_source"
    with pytest.raises(InvalidConvolution, match=r"input is at data\[1\], and so is weight"):
        inline({"weight": Sourced(BYTE, at(1)), "input": Sourced(BYTE, NOWHERE)}, ENTRIES)


def test_an_entry_that_nobody_names_is_refused() -> None:
    with pytest.raises(InvalidConvolution, match="2 entries of data, but its tensors are 1") as caught:
        inline({"weight": Sourced(PAIR, NOWHERE)}, ENTRIES)
    assert caught.value.field == "data"


def test_shared_memory_is_not_offered_yet() -> None:
    region = tensor_pb2.TensorSource(region=tensor_pb2.SharedRegion(id="r", length=2))
    with pytest.raises(Unsupported, match="weight is in shared memory"):
        inline({"weight": Sourced(PAIR, region)}, [])


def test_values_that_are_needed_cannot_be_omitted() -> None:
    with pytest.raises(InvalidConvolution, match="input is omitted") as caught:
        inline({"input": Sourced(PAIR, tensor_pb2.TensorSource(omitted=True))}, [])
    assert caught.value.field == "input_source"
