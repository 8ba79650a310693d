"""Small layers for tests of the store, told apart by a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convolver.core.backends import Prepared
from convolver.server import metrics
from convolver.v1 import convolution_pb2, tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from convolver.server.layers import HeldLayer, LayerStore


def definition(*shape: int, bias: int = 0) -> bytes:
    """Of a float32 weight, and a bias of so many elements."""
    float32 = tensor_pb2.DATA_TYPE_FLOAT32
    message = convolution_pb2.LayerDefinition(weight=tensor_pb2.Tensor(dtype=float32, shape=shape))
    if bias:
        message.bias.CopyFrom(tensor_pb2.Tensor(dtype=float32, shape=[bias]))
    return message.SerializeToString()


def weight(number: int, size: int = 250) -> NDArray[np.float32]:
    """(1, 1, size): 1000 bytes unless told otherwise, others for every number."""
    return np.full((1, 1, size), number, np.float32)


DEFINITION = definition(1, 1, 250)
ROOM = 1000 + len(DEFINITION)
"""Bytes of one layer of `weight`."""


def filled(store: LayerStore, *numbers: int) -> list[HeldLayer]:
    return [store.put(DEFINITION, weight(number), None) for number in numbers]


def held(store: LayerStore) -> list[int]:
    """The numbers of the layers, the latest used first."""
    return [int(layer.weight.flat[0]) for layer in store.layers()]


def form(number: int, extra: int) -> Callable[[], tuple[Prepared, int]]:
    return lambda: (Prepared(number, None), extra)


def gauge(name: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name)
