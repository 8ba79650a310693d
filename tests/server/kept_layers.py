"""Requests whose layers are to be kept or are named by their digest, as a stranger writes them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from tests.contract import FLOAT32, output, request

from convolver.v1 import convolution_pb2, tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

X = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4) % 7
W = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2) % 5 - 2
BIAS = np.array([1, -2, 3], np.float32)
Y = sum(
    np.einsum("oc,nchw->nohw", W[:, :, i, j], X[:, :, i : i + 3, j : j + 3]) for i in range(2) for j in range(2)
) + BIAS.reshape(1, 3, 1, 1)
"""The convolution of X with W and BIAS, offset by offset; exact, being of small integers."""


def header(shape: Sequence[int]) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype=FLOAT32, shape=shape)


def definition(weight: NDArray[Any] = W, bias: NDArray[Any] | None = BIAS) -> convolution_pb2.LayerDefinition:
    of_bias = None if bias is None else header(bias.shape)
    return convolution_pb2.LayerDefinition(weight=header(weight.shape), bias=of_bias)


def kept(of: convolution_pb2.LayerDefinition | None = None) -> convolution_pb2.Layer:
    return convolution_pb2.Layer(definition=of or definition(), keep=True)


def named(digest: str) -> convolution_pb2.Layer:
    return convolution_pb2.Layer(digest=digest)


def maximum(kernel: int) -> convolution_pb2.Layer:
    pooling = convolution_pb2.Pooling(kind=convolution_pb2.POOLING_KIND_MAX, kernel=[kernel, kernel])
    return convolution_pb2.Layer(pooling=pooling)


def through(*layers: convolution_pb2.Layer, shape: Sequence[int] = X.shape) -> convolution_pb2.Convolution:
    return convolution_pb2.Convolution(layers=layers, input=header(shape))


def keeping() -> bytes:
    """Gives Y, and has the layer of W and BIAS kept."""
    return request(through(kept()), W, BIAS, X)


def digest_of(sent: bytes, *data: NDArray[Any]) -> str:
    """As the contract has it in HeldLayer.digest."""
    hashed = hashlib.sha256(len(sent).to_bytes(8, "little") + sent)
    for array in data:
        hashed.update(array.tobytes())
    return f"sha256:{hashed.hexdigest()}"


DIGEST = digest_of(definition().SerializeToString(), W, BIAS)


def is_y(answer: bytes) -> bool:
    return bool(np.array_equal(output(answer), Y))
