"""The bytes of tensors that come in pieces: where they are written, and what is refused."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convolver.core.errors import InvalidConvolution
from convolver.core.operation import Tensor
from convolver.server.incoming import IncomingTensors

TENSORS = {
    "weight": Tensor("int8", (2, 3)),
    "nothing": Tensor("float32", (0, 4)),
    "bias": Tensor("float32", (1,)),
    "input": Tensor("complex64", (1, 2)),
}
DATA = bytes(range(1, 7)) + np.float32(2.5).tobytes() + np.array([1, 2j], np.complex64).tobytes()


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=9))
def test_they_are_the_same_whatever_the_borders(cuts: list[int]) -> None:
    incoming = IncomingTensors(TENSORS)
    assert (incoming.bytes, incoming.come) == (26, 0)
    places = [0, *sorted(cuts), len(DATA)]
    for start, stop in pairwise(places):
        incoming.take(memoryview(DATA)[start:stop])
        assert incoming.come == stop
    arrays = incoming.arrays()
    assert list(arrays) == list(incoming.names) == list(TENSORS)
    for name, (dtype, shape) in TENSORS.items():
        array = arrays[name]
        assert (array.dtype.name, array.shape, array.flags.writeable) == (dtype, shape, False)
    assert arrays["weight"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert arrays["bias"].tolist() == [2.5]
    assert arrays["input"].tolist() == [[1, 2j]]


def test_an_array_shows_what_comes_later() -> None:
    incoming = IncomingTensors({"input": Tensor("uint8", (4,))})
    incoming.take(memoryview(b"\1\2"))
    array = incoming.array("input")
    assert array[:2].tolist() == [1, 2]
    incoming.take(memoryview(b"\3\4"))
    assert array.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("at", range(0, len(DATA) + 1, 5))
def test_a_byte_too_many_is_refused_wherever_its_message_starts(at: int) -> None:
    incoming = IncomingTensors(TENSORS)
    incoming.take(memoryview(DATA)[:at])
    with pytest.raises(
        InvalidConvolution, match=r"^27 bytes of data or more came, but there are 26 of weight"
    ) as caught:
        incoming.take(memoryview(DATA + b"x")[at:])
    assert (caught.value.field, incoming.come) == ("data", at)


def test_a_byte_too_few_is_refused() -> None:
    incoming = IncomingTensors(TENSORS)
    incoming.take(memoryview(DATA)[:-1])
    with pytest.raises(InvalidConvolution, match=r"^25 bytes of data came") as caught:
        incoming.arrays()
    assert caught.value.field == "data"


def test_many_tensors_are_counted_in_place_of_being_named() -> None:
    incoming = IncomingTensors({f"layers[{i}].weight": Tensor("int8", (1,)) for i in range(5)})
    with pytest.raises(InvalidConvolution, match="there are 5 of 5 tensors"):
        incoming.check_complete()


def test_no_bytes_are_complete_at_once() -> None:
    incoming = IncomingTensors({"input": Tensor("float32", (0, 3))})
    assert incoming.arrays()["input"].shape == (0, 3)


def test_a_bool_is_0_or_1() -> None:
    incoming = IncomingTensors({"input": Tensor("bool", (3,))})
    incoming.take(memoryview(b"\0\1\2"))
    with pytest.raises(InvalidConvolution, match="input has the byte 2 at 2"):
        incoming.arrays()


def test_memory_is_taken_for_what_comes_and_once() -> None:
    message = memoryview(bytes(2**20))
    incoming = IncomingTensors({"input": Tensor("float32", (2**18 * 8,))})
    tracemalloc.start()
    try:
        for _ in range(8):
            incoming.take(message)
        incoming.arrays()
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()


def test_sizes_are_counted_beyond_32_bits() -> None:
    incoming = IncomingTensors({"input": Tensor("float64", (3, 2**29))})  # whose pages nothing touches
    assert incoming.bytes == 3 * 2**32
    incoming.take(memoryview(bytes(5)))
    with pytest.raises(InvalidConvolution, match=f"5 bytes of data came, but there are {3 * 2**32} of input"):
        incoming.check_complete()
