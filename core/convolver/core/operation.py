"""The frozen, fully resolved description of one convolution: tuples and words, no arrays, nothing left to decide about
meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from convolver.core.dtypes import TABLE, DType, DTypeName, accumulator
from convolver.core.parameters import Activation, Algorithm, Layout, Overflow, PaddingMode, Precision, Priority

LARGEST = 2**31 - 1
"""The largest dimension and the largest parameter."""


class Tensor(NamedTuple):
    """A tensor's header: its element type and shape."""

    dtype: DTypeName
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Execution:
    """How to execute; changes no meaning beyond the stated tolerances."""

    precision: Precision = "highest"
    algorithm: Algorithm = "auto"
    backend: str = "auto"
    deterministic: bool = False
    priority: Priority = "interactive"


@dataclass(frozen=True, slots=True)
class Operation:
    """One convolution. Spatial tuples have one entry per dimension, in the order of the weight's spatial dimensions.

    `input_shape`, `weight_shape` and what comes out are in `layout`; `pad_begin` and `pad_end` are numbers, negative
    ones crop.
    """

    dtype: DTypeName
    output_dtype: DTypeName
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    has_bias: bool
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    input_dilation: tuple[int, ...]
    pad_begin: tuple[int, ...]
    pad_end: tuple[int, ...]
    padding_mode: PaddingMode = "zeros"
    padding_value: float = 0.0
    groups: int = 1
    batch_groups: int = 1
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    flip: bool = False
    layout: Layout = "channels_first"
    activation: Activation = "none"
    overflow: Overflow = "error"

    @property
    def ndim(self) -> int:
        """Spatial dimensions: 1, 2 or 3."""
        return len(self.weight_shape) - 2

    @property
    def batched(self) -> bool:
        """Whether the input has a batch dimension."""
        return len(self.input_shape) == self.ndim + 2

    @property
    def canonical_input(self) -> tuple[int, ...]:
        """The input's shape as (N, C, *S), N = 1 for an unbatched input."""
        shape = self.input_shape if self.batched else (1, *self.input_shape)
        return shape if self.layout == "channels_first" else (shape[0], shape[-1], *shape[1:-1])

    @property
    def canonical_weight(self) -> tuple[int, ...]:
        """The weight's shape as (O, C/groups, *K), transposed (C, O/groups, *K)."""
        shape = self.weight_shape
        return shape if self.layout == "channels_first" else (shape[-1], shape[-2], *shape[:-2])

    @property
    def accumulator(self) -> DType:
        """The type that its sums are held in."""
        return accumulator(TABLE[self.dtype], TABLE[self.output_dtype])

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        first, second = self.canonical_weight[:2]
        return second * self.groups if self.transposed else first
