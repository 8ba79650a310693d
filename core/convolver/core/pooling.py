"""Pooling between the convolutions of a stack: from a caller's words to a frozen, fully resolved description, with its
shapes and costs. The meaning is that of torch's max_pool, avg_pool (ceil_mode=False, count_include_pad=True) and
adaptive_avg_pool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any, Literal, TypedDict

from convolver.core import dtypes
from convolver.core.dtypes import DTypeName
from convolver.core.errors import InvalidConvolution, shown
from convolver.core.geometry import extent, forward_size
from convolver.core.operation import LARGEST, Tensor
from convolver.core.parameters import Layout, Sizes
from convolver.core.values import number, per_dimension, word

PoolingKind = Literal["max", "average", "adaptive_average"]


class PoolingParameters(TypedDict, total=False):
    """The words of one pooling. An int stands for the same number in every spatial dimension; None for the default."""

    kind: PoolingKind
    kernel: Sizes | None
    stride: Sizes | None
    padding: Sizes | None
    dilation: Sizes | None
    output_size: Sizes | None


@dataclass(frozen=True, slots=True)
class Pooling:
    """One pooling. `kernel`, `stride`, `padding` (at both ends) and `dilation` have one entry per spatial dimension, or
    none for "adaptive_average": its window i of o over n elements is floor(i n/o) to ceil((i+1) n/o)-1. `output_size`
    counts the windows, for every kind. A maximum is of the elements that are there; a mean counts padding as zeros.
    """

    kind: PoolingKind
    dtype: DTypeName
    output_dtype: DTypeName
    input_shape: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_size: tuple[int, ...]
    layout: Layout = "channels_first"

    @property
    def ndim(self) -> int:
        """Spatial dimensions: 1, 2 or 3."""
        return len(self.output_size)

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
    def input_size(self) -> tuple[int, ...]:
        """The spatial part of the input's shape."""
        return self.canonical_input[2:]

    @property
    def input(self) -> Tensor:
        """The input's header."""
        return Tensor(self.dtype, self.input_shape)

    @property
    def output(self) -> Tensor:
        """The output's header, in the input's layout, without a batch dimension where the input has none."""
        batch, channels = self.canonical_input[:2]
        first = self.layout == "channels_first"
        shape = (channels, *self.output_size) if first else (*self.output_size, channels)
        return Tensor(self.output_dtype, (batch, *shape) if self.batched else shape)

    @property
    def parameters(self) -> PoolingParameters:
        """The words of this pooling, every default written out."""
        if not self.kernel:
            return {"kind": self.kind, "output_size": self.output_size}
        given: PoolingParameters = {"kind": self.kind, "kernel": self.kernel, "stride": self.stride}
        return {**given, "padding": self.padding, "dilation": self.dilation}

    @property
    def extents(self) -> tuple[int, ...]:
        """Elements that the windows span; none for "adaptive_average"."""
        return tuple(map(extent, self.kernel, self.dilation))

    @property
    def accumulator(self) -> dtypes.DType:
        """The type that is computed in: integers' own, float32 for narrower floats."""
        row = dtypes.TABLE[self.dtype]
        return row if row.exact else dtypes.accumulator(row, dtypes.TABLE[self.output_dtype])

    @property
    def macs(self) -> int:
        """There are no products: 0."""
        return 0

    @property
    def work(self) -> int:
        """Elements that the windows read, at most: what a back end does, in the cost model's units."""
        sizes = zip(self.input_size, self.output_size, strict=True)
        if self.kernel:
            read = [o * min(k, n) for (n, o), k in zip(sizes, self.kernel, strict=True)]
        else:  # the sum over i < o of ceil((i+1) n/o) - floor(i n/o)
            read = [n + o - gcd(n, o) for n, o in sizes]
        return prod(self.canonical_input[:2]) * prod(read)

    @property
    def input_bytes(self) -> int:
        """Bytes of the input."""
        return prod(self.input_shape) * dtypes.TABLE[self.dtype].itemsize

    @property
    def output_bytes(self) -> int:
        """Bytes of the output."""
        return prod(self.output.shape) * dtypes.TABLE[self.output_dtype].itemsize


def parse_pooling(
    input: Tensor,
    parameters: PoolingParameters,
    *,
    ndim: int,
    layout: Layout = "channels_first",
    output_dtype: DTypeName | None = None,
) -> Pooling:
    """The pooling that these words describe, of an input (N, C, *S) or (C, *S) with `ndim` spatial dimensions; see
    `layout` for the other order. `output_dtype` is the input's or a wider one.

    Raises InvalidConvolution naming the field (`kernel[1]`, `input.shape[2]`), the rule and the numbers.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    _check_names(given)
    kind: PoolingKind = word(given, "kind", PoolingKind, None)
    row = dtypes.named(input.dtype, "input.dtype")
    wide = dtypes.named(output_dtype or row.name, "output_dtype")
    if not dtypes.is_wider(wide, row):
        raise InvalidConvolution(f"output_dtype is {wide.name}, which does not hold every {row.name}", "output_dtype")
    _check_kind(kind, row)
    shape = tuple(number(size, f"input.shape[{i}]", low=0) for i, size in enumerate(input.shape))
    bare = Pooling(kind, row.name, wide.name, shape, (), (), (), (), (1,) * ndim, layout)
    _check_shape(bare)
    made = _adaptive(bare, given) if kind == "adaptive_average" else _windowed(bare, given)
    _refuse_overflow(made)
    return made


def _check_names(given: Mapping[str, Any]) -> None:
    for name in given:
        if name not in PoolingParameters.__annotations__:
            raise InvalidConvolution(
                f"{shown(name)} is no parameter of pooling; there are {', '.join(PoolingParameters.__annotations__)}",
                str(name)[:80],
            )


def _check_kind(kind: PoolingKind, row: dtypes.DType) -> None:
    """Complex numbers have no largest; the mean of integers is none, and torch's own rounds it towards zero."""
    if kind == "max" and row.kind == "complex":
        raise InvalidConvolution(f"kind is 'max', but {row.name} takes 'average' or 'adaptive_average'", "kind")
    if kind != "max" and row.exact:
        raise InvalidConvolution(f"kind is {kind!r}, but {row.name} takes 'max' alone", "kind")


def _check_shape(bare: Pooling) -> None:
    shape, ndim = bare.input_shape, bare.ndim
    if len(shape) not in (ndim + 1, ndim + 2):
        raise InvalidConvolution(
            f"input {shape} has {len(shape)} dimensions; pooling in {ndim} spatial dimensions takes {ndim + 2}, "
            f"or {ndim + 1} unbatched",
            "input.shape",
        )
    for i in range(int(bare.batched), len(shape)):
        number(shape[i], f"input.shape[{i}]", low=1)


def _adaptive(bare: Pooling, given: Mapping[str, Any]) -> Pooling:
    for field in ("kernel", "stride", "padding", "dilation"):
        if field in given:
            _refuse_with_kind(bare.kind, field, given)
    if "output_size" not in given:
        raise InvalidConvolution(f"output_size is missing; kind {bare.kind!r} needs it", "output_size")
    sizes = per_dimension(given["output_size"], bare.ndim, "output_size", low=1)
    return replace(bare, output_size=sizes)


def _windowed(bare: Pooling, given: Mapping[str, Any]) -> Pooling:
    if "output_size" in given:
        _refuse_with_kind(bare.kind, "output_size", given)
    if "kernel" not in given:
        raise InvalidConvolution(f"kernel is missing; kind {bare.kind!r} needs it", "kernel")
    kernel = per_dimension(given["kernel"], bare.ndim, "kernel", low=1)
    stride = per_dimension(given.get("stride", kernel), bare.ndim, "stride", low=1)
    padding = per_dimension(given.get("padding", 0), bare.ndim, "padding", low=0)
    dilation = per_dimension(given.get("dilation", 1), bare.ndim, "dilation", low=1)
    if bare.kind != "max" and any(step != 1 for step in dilation):
        _refuse_with_kind(bare.kind, "dilation", given)
    made = replace(bare, kernel=kernel, stride=stride, padding=padding, dilation=dilation)
    return replace(made, output_size=tuple(_output_size(made, d) for d in range(made.ndim)))


def _refuse_with_kind(kind: PoolingKind, field: str, given: Mapping[str, Any]) -> None:
    raise InvalidConvolution(f"{field} is {shown(given[field])}, which does not go with kind {kind!r}", field)


def _output_size(made: Pooling, d: int) -> int:
    """floor((n + 2 padding - e) / stride) + 1, once everything that torch refuses is refused."""
    size, kernel, padding, dilation = made.input_size[d], made.kernel[d], made.padding[d], made.dilation[d]
    if padding > kernel // 2:
        raise InvalidConvolution(
            f"padding[{d}] is {padding}; it must be at most half of kernel[{d}], which is {kernel}", f"padding[{d}]"
        )
    reach = made.extents[d]
    if reach > size + 2 * padding:
        spans = f" spanning {reach} with dilation {dilation}" if reach != kernel else ""
        raise InvalidConvolution(
            f"kernel[{d}] is {kernel}{spans}, larger than the padded input, which is {size + 2 * padding} "
            f"({size} with padding {padding})",
            f"kernel[{d}]",
        )
    # One element before the input and one behind it. torch would write the gradient outside its memory.
    if -padding % dilation >= size:
        raise InvalidConvolution(
            f"dilation[{d}] is {dilation}: a window of {kernel} with padding {padding} steps over the input of {size}",
            f"dilation[{d}]",
        )
    output = forward_size(size, made.stride[d], reach, 2 * padding)
    if output > LARGEST:
        raise InvalidConvolution(f"output dimension {d} would be {output}, above 2^31-1", f"kernel[{d}]")
    return output


def _refuse_overflow(made: Pooling) -> None:
    """An empty batch counts as 1, as for convolutions."""
    for name, tensor in (("input", made.input), ("output", made.output)):
        size = prod(max(1, length) for length in tensor.shape) * dtypes.TABLE[tensor.dtype].itemsize
        if size >= 2**63:
            raise InvalidConvolution(
                f"{name} {tensor.shape} of {tensor.dtype} takes {size} bytes, above 2^63-1",
                "input.shape" if name == "input" or made.kernel else "output_size",
            )
