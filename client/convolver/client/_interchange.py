"""Arrays of any library in, and out again: NumPy, torch, whatever speaks `__array__` or DLPack. The one place that
knows torch's bits.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from convolver.core.tensors import Array

AnyArray = Any
"""An array of any library: what `to_array` takes."""

_BITS = {
    "bfloat16": (np.int16, ml_dtypes.bfloat16),
    "float8_e4m3fn": (np.uint8, ml_dtypes.float8_e4m3fn),
    "float8_e5m2": (np.uint8, ml_dtypes.float8_e5m2),
}
"""Types that torch hands over only as bits: what to view them as, and what NumPy then calls them."""


def to_array(value: AnyArray) -> Array:
    """The value as a NumPy array; its own memory where that is possible.

    Raises TypeError or ValueError where it is no array.
    """
    if is_torch(value):
        return _from_torch(value)
    if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    return np.asarray(value)


def like(output: Array, value: AnyArray) -> AnyArray:
    """The output as `value` is: a torch tensor, detached and on the same device, for a torch tensor; else as it is."""
    if not is_torch(value):
        return output
    torch = sys.modules["torch"]
    name = output.dtype.name
    if name in _BITS:
        return torch.from_numpy(output.view(_BITS[name][0])).view(getattr(torch, name)).to(value.device)
    return torch.from_numpy(output).to(value.device)


def likeness(value: AnyArray) -> AnyArray:
    """What `like` needs of a value, without its data."""
    return sys.modules["torch"].empty(0, device=value.device) if is_torch(value) else None


def is_torch(value: object) -> bool:
    """Whether it is a tensor of torch."""
    torch = sys.modules.get("torch")  # a caller who has a tensor has loaded torch
    return torch is not None and isinstance(value, torch.Tensor)


def _from_torch(tensor: Any) -> Array:  # noqa: ANN401 - torch.Tensor, which may not be installed
    native = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(native.dtype).removeprefix("torch.")
    if name not in _BITS:
        array: Array = native.numpy()
        return array
    bits, dtype = _BITS[name]
    viewed: Array = native.view(getattr(sys.modules["torch"], np.dtype(bits).name)).numpy()
    return viewed.view(dtype)
