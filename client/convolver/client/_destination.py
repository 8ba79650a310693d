"""The array that a caller gives for the output."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from convolver.client._interchange import AnyArray, is_torch, to_array
from convolver.core.errors import InvalidConvolution

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.core.operation import Tensor
    from convolver.core.tensors import Array


class Destination(NamedTuple):
    """What the caller gave, and its memory as an array."""

    given: AnyArray
    array: Array

    def take(self, output: Array) -> None:
        """Raises ValueError where the server has made something else."""
        if (output.dtype, output.shape) != (self.array.dtype, self.array.shape):
            raise ValueError(f"the output is {output.dtype} {output.shape}, not {self.array.dtype} {self.array.shape}")
        np.copyto(self.array, output)


def destination(out: AnyArray, output: Tensor, data: Sequence[memoryview]) -> Destination | None:
    """Where the output is written; None where the caller gave nothing.

    Raises InvalidConvolution unless `out` is a NumPy array, or a torch tensor on the CPU that needs no gradient, of the
    output's shape and dtype, row-major, writable, and apart from the memory of `data`: of what is still being sent when
    the first of the output comes.
    """
    if out is None:
        return None
    if not isinstance(out, np.ndarray) and not (is_torch(out) and out.device.type == "cpu"):
        kind = f"{type(out).__module__}.{type(out).__qualname__}"
        raise InvalidConvolution(f"out is a {kind}; it must be a NumPy array, or a torch tensor on the CPU", "out")
    dtype, shape = str(out.dtype).removeprefix("torch."), tuple(out.shape)
    if (dtype, shape) != (output.dtype, output.shape):
        text = f"out is {dtype} {shape}, but the output is {output.dtype} {output.shape}"
        raise InvalidConvolution(text, "out")
    array = _memory(out)
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise InvalidConvolution("out must be row-major, without gaps, and writable", "out")
    if any(np.may_share_memory(array, np.asarray(view)) for view in data):
        raise InvalidConvolution("out shares memory with what is sent", "out")
    return Destination(out, array)


def _memory(out: AnyArray) -> Array:
    """The array itself, or that of a tensor."""
    if not is_torch(out):
        return np.asarray(out)
    if out.requires_grad or not out.is_contiguous() or out.is_conj() or out.is_neg():
        raise InvalidConvolution("out must be a row-major tensor that needs no gradient and is no view", "out")
    return to_array(out)
