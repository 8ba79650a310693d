"""Between arrays of NumPy and tensors of torch, which share their memory wherever both can have it."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from convolver.core import dtypes
from convolver.core.backends import Array
from convolver.core.backends.torch_cuda import Staging
from convolver.core.backends.torch_pooling import rounded
from convolver.core.dtypes import DTypeName

_BITS = {"bfloat16": "int16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}
"""Types that NumPy and torch exchange only as bits."""

_ROUNDED_HERE = {"float8_e4m3fn"}
"""Types that torch's copy does not round as they are meant (torch_pooling.rounded)."""

with warnings.catch_warnings():  # once and for all: inputs from the wire cannot be written to, and never are
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    torch.from_numpy(np.frombuffer(b"\0", np.uint8))


def tensor(array: Array, dtype: str) -> torch.Tensor:
    """The array's memory as a tensor; copied where torch cannot have it, or it is in the other byte order."""
    native = array.astype(dtypes.TABLE[dtype].numpy, copy=False)
    return bits(native if is_torchs(native) else native.copy(), dtype)


def is_torchs(native: Array) -> bool:
    """Whether torch can have this memory: not read backwards, and aligned (torch 2.13 reads complex128 so that the
    process ends with a general protection fault).
    """
    astray = native.__array_interface__["data"][0] % native.itemsize
    return not astray and all(stride >= 0 for stride in native.strides)


def bits(native: Array, dtype: str) -> torch.Tensor:
    """The same memory as a tensor."""
    if dtype not in _BITS:
        return torch.from_numpy(native)
    return torch.from_numpy(native.view(_BITS[dtype])).view(getattr(torch, dtype))


def received(y: torch.Tensor, dtype: DTypeName, out: Array | None = None, staging: Staging | None = None) -> Array:
    """The tensor in host memory, rounded once to `dtype`: in `out`, or of its own where it was."""
    target = bits(out, dtype) if out is not None and is_torchs(out) else None
    if staging:
        y = staging.fetched(rounded(y, dtype), target)
    elif target is not None:
        target.copy_(rounded(y, dtype) if dtype in _ROUNDED_HERE else y)
    if out is not None and target is not None:
        return out
    array = _array(rounded(y, dtype), dtype)
    if out is None:
        return array
    np.copyto(out, array)
    return out


def _array(y: torch.Tensor, dtype: DTypeName) -> Array:
    """The same memory as an array."""
    if dtype not in _BITS:
        array: Array = y.numpy()
        return array
    return y.view(getattr(torch, _BITS[dtype])).numpy().view(dtypes.TABLE[dtype].numpy)
