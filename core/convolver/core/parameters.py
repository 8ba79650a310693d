"""The parameters of a convolution as callers write them, once for every method, for both ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from convolver.core.dtypes import DTypeName

PaddingWord = Literal["valid", "same", "same_lower", "full", "causal"]
PaddingMode = Literal["zeros", "constant", "reflect", "symmetric", "replicate", "circular"]
Layout = Literal["channels_first", "channels_last"]
Activation = Literal[
    "none",
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "gelu",
    "gelu_tanh",
    "silu",
    "sigmoid",
    "tanh",
    "softplus",
    "hardswish",
]
Overflow = Literal["error", "saturate", "wrap"]
Precision = Literal["highest", "high", "medium"]
Algorithm = Literal["auto", "direct", "fft"]
Priority = Literal["interactive", "bulk"]

Sizes = int | Sequence[int]
Padding = int | Sequence[int] | Sequence[tuple[int, int]] | PaddingWord


class ExecutionParameters(TypedDict, total=False):
    """How to execute: changes no meaning beyond the stated tolerances."""

    precision: Precision
    algorithm: Algorithm
    backend: str
    deterministic: bool
    priority: Priority


class _BeyondTorch(TypedDict, total=False):
    padding_mode: PaddingMode
    padding_value: float
    input_dilation: Sizes
    batch_groups: int
    output_size: Sizes | None
    flip: bool
    layout: Layout
    activation: Activation | None


class _OfTorch(TypedDict, total=False):
    stride: Sizes
    padding: Padding
    dilation: Sizes
    groups: int
    transposed: bool
    output_padding: Sizes


class LayerParameters(_OfTorch, _BeyondTorch, total=False):
    """What belongs to one convolution of a stack."""


class StackParameters(ExecutionParameters, total=False):
    """What belongs to a call and not to one of its layers; `timeout`, in seconds, is the caller's alone and does not
    travel.
    """

    output_dtype: DTypeName | None
    overflow: Overflow
    timeout: float | None


class MoreParameters(StackParameters, _BeyondTorch, total=False):
    """What conv1d/2d/3d take beside the arguments of torch.nn.functional."""


class Parameters(MoreParameters, _OfTorch, total=False):
    """All keyword parameters of a call. An int stands for the same number in every spatial dimension; every number is
    at most 2^31-1.
    """
