"""Between arrays and the bytes that travel: row-major, little-endian, no padding. Views both ways wherever memory
allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convolver.core import dtypes
from convolver.core.errors import InvalidConvolution, Unsupported
from convolver.core.operation import Tensor
from convolver.v1 import tensor_pb2

Array = NDArray[Any]

FromRegion = Callable[[tensor_pb2.SharedRegion, Tensor, str], Array]
"""The array of a tensor in a region of shared memory; the word is the tensor's name, for errors."""


class Sourced(NamedTuple):
    """A tensor's header and where its bytes are."""

    tensor: Tensor
    source: tensor_pb2.TensorSource


def header(array: Array, field: str) -> Tensor:
    """The header of an array. Raises InvalidConvolution for a dtype that the contract lacks."""
    return Tensor(dtypes.of(array.dtype, field).name, array.shape)


def to_bytes(array: Array) -> memoryview:
    """The array's bytes in the contract's order; copied only where it is strided or big-endian."""
    native = array if array.dtype.byteorder != ">" else array.astype(array.dtype.newbyteorder("<"))
    contiguous = np.ascontiguousarray(native)
    return contiguous.reshape(-1).view(np.uint8).data


def from_bytes(view: memoryview, tensor: Tensor, field: str) -> Array:
    """A read-only array over the bytes.

    Raises InvalidConvolution where their number is not that of the header, or a bool is neither 0 nor 1.
    """
    row = dtypes.TABLE[tensor.dtype]
    expected = prod(tensor.shape) * row.itemsize
    if view.nbytes != expected:
        raise InvalidConvolution(
            f"{field} {tensor.shape} of {tensor.dtype} takes {expected} bytes, but its data has {view.nbytes}", field
        )
    array: Array = np.frombuffer(view.toreadonly(), np.uint8 if row.kind == "bool" else row.numpy)
    if row.kind == "bool":
        array = _checked_bool(array, field)
    return array.reshape(tensor.shape)


def _checked_bool(raw: Array, field: str) -> Array:
    if raw.size and int(raw.max()) > 1:
        first = int(np.argmax(raw > 1))
        raise InvalidConvolution(f"{field} has the byte {int(raw[first])} at {first}; a bool is 0 or 1", field)
    return raw.view(np.bool_)


def first_nonfinite(array: Array) -> tuple[int, ...] | None:
    """The index of the first NaN or infinity, or None."""
    finite = np.isfinite(array)
    if finite.all():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))


def _no_region(_region: tensor_pb2.SharedRegion, _tensor: Tensor, field: str) -> Array:
    raise Unsupported(f"{field} is in shared memory, which this server does not offer")


def sent(tensors: Mapping[str, Sourced], unneeded: Container[str] = ()) -> dict[str, Sourced]:
    """The tensors whose bytes a request brings: all but those that are `unneeded` and omitted. Raises
    InvalidConvolution where another is omitted.
    """
    for name, (_, source) in tensors.items():
        if name not in unneeded and source.WhichOneof("source") == "omitted":
            raise InvalidConvolution(f"{name} is omitted, but its values are needed", f"{name}_source")
    return {name: given for name, given in tensors.items() if given.source.WhichOneof("source") != "omitted"}


def inline(
    tensors: Mapping[str, Sourced],
    entries: Sequence[memoryview],
    unneeded: Container[str] = (),
    in_region: FromRegion = _no_region,
) -> dict[str, Array]:
    """The arrays of a request whose tensors, in the order of tensors, have their bytes in `entries`, or where
    `in_region` finds them. Those that are `unneeded` may be omitted.

    Raises InvalidConvolution unless each entry is named exactly once and has its tensor's size, and what `in_region`
    raises.
    """
    arrays, taken = {}, dict[int, str]()
    for name, (tensor, source) in sent(tensors, unneeded).items():
        if source.WhichOneof("source") == "region":
            arrays[name] = in_region(source.region, tensor, name)
            continue
        index = source.index if source.WhichOneof("source") == "index" else len(taken)
        if index >= len(entries):
            raise InvalidConvolution(
                f"{name} is at data[{index}], but the message has {len(entries)} entries of data", f"{name}_source"
            )
        if index in taken:
            raise InvalidConvolution(f"{name} is at data[{index}], and so is {taken[index]}", f"{name}_source")
        taken[index] = name
        arrays[name] = from_bytes(entries[index], tensor, name)
    if len(taken) != len(entries):
        raise InvalidConvolution(
            f"the message has {len(entries)} entries of data, but its tensors are {len(taken)}", "data"
        )
    return arrays
