"""Tensors that their caller may write to at any time: which are read in place, and which are copied, once."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from tests.contract import convolution

from convolver.server.engine import Engine
from convolver.server.jobs import Job
from convolver.server.layers import LayerStore
from convolver.server.regions import Registry
from convolver.server.settings import Settings
from convolver.server.shared_tensors import SharedTensors
from convolver.v1 import convolution_pb2, tensor_pb2

ENGINE = Engine.of(Settings(backend="reference", threads=1), LayerStore(0))


class Memory:
    """Stands for a registry of one region."""

    def __init__(self) -> None:
        self.bytes = np.zeros(4096, np.uint8)

    def view(self, region: tensor_pb2.SharedRegion, size: int, _: str) -> memoryview:
        return self.bytes[region.offset :][:size].data


def job(dtype: str = "FLOAT32", algorithm: str = "DIRECT") -> Job:
    """Its weight of four elements at 0, its input of nine at 1024."""
    header = convolution((1, 1, 3, 3), (1, 1, 2, 2))
    for tensor in (header.input, header.layers[0].definition.weight):
        tensor.dtype = tensor_pb2.DataType.Value(f"DATA_TYPE_{dtype}")
    header.execution.algorithm = convolution_pb2.Algorithm.Value(f"ALGORITHM_{algorithm}")
    item = {"FLOAT32": 4, "INT8": 1}[dtype]
    header.layers[0].weight_source.region.CopyFrom(tensor_pb2.SharedRegion(id="it", length=4 * item))
    header.input_source.region.CopyFrom(tensor_pb2.SharedRegion(id="it", offset=1024, length=9 * item))
    return ENGINE.accept(header.SerializeToString())


@pytest.mark.parametrize(
    ("given", "in_place"),
    [(job(), {"input"}), (job("INT8"), set()), (job(algorithm="FFT"), set())],
    ids=["direct", "integers", "by FFT"],
)
def test_only_what_is_read_once_is_read_in_place(given: Job, in_place: set[str]) -> None:
    memory = Memory()
    arrays = SharedTensors(given, cast("Registry", memory)).arrays()
    assert {name for name, array in arrays.items() if np.shares_memory(array, memory.bytes)} == in_place
    assert set(arrays) == {"weight", "input"}


def test_a_copy_is_made_once_be_it_that_it_is_asked_for_again() -> None:
    memory, given = Memory(), job(algorithm="FFT")
    shared: Any = SharedTensors(given, cast("Registry", memory))
    first = shared.arrays()
    memory.bytes[:] = 1
    again = shared.arrays()
    assert all(again[name] is first[name] for name in ("weight", "input"))
    assert not any(array.any() for array in again.values())
