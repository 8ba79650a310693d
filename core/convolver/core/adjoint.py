"""The convolutions of other shapes that the gradients of a convolution are, as integers.

With y the convolution of x by w, the gradient with respect to x is the transposed convolution of that with respect to y
by w, and the gradient with respect to w correlates that with x (Dumoulin and Visin, arXiv 1603.07285, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from convolver.core import methods
from convolver.core.geometry import Geometry, dilated
from convolver.core.operation import Operation

REMEMBERED = 1024
"""Geometries whose adjoints are kept: the same are asked for by each plan and each run."""


def source_size(geometry: Geometry) -> tuple[int, ...]:
    """Spatial size of what the kernel slides over: the padded input, or transposed the uncropped output."""
    return methods.scatter_size(geometry) if geometry.operation.transposed else geometry.padded_size


@lru_cache(REMEMBERED)
def correlation(geometry: Geometry) -> Geometry:
    """The forward convolution without padding, of the same products: its input is the padded input, and its output the
    output; transposed, its input is the output before cropping, and its output the input. Batch groups have become
    groups: items that meet other kernels are other channels.
    """
    op, ones, none = geometry.operation, (1,) * geometry.ndim, (0,) * geometry.ndim
    groups, batch = op.groups * op.batch_groups, geometry.output_batch
    ends = (geometry.in_channels * op.batch_groups, geometry.out_channels)
    source, rows = reversed(ends) if op.transposed else ends
    size = geometry.input_size if op.transposed else geometry.output_size
    wide = op.accumulator.name
    forward = Operation(
        dtype=wide,
        output_dtype=wide,
        input_shape=(batch, source, *source_size(geometry)),
        weight_shape=(rows, source // groups, *geometry.kernel),
        has_bias=False,
        stride=op.stride,
        dilation=op.dilation,
        input_dilation=ones,
        pad_begin=none,
        pad_end=none,
        groups=groups,
    )
    return Geometry(forward, batch, source, rows, source_size(geometry), geometry.kernel, geometry.extents, size)


@lru_cache(REMEMBERED)
def input_gradient(geometry: Geometry) -> Geometry:
    """The convolution of the rows of `correlation` with the weight, conjugated, that is the gradient with respect to
    the dilated input; to the padded one for padding modes that copy elements.
    """
    op, made = geometry.operation, correlation(geometry)
    if op.transposed:
        return made
    size, unpadded = geometry.padded_size, tuple(map(dilated, geometry.input_size, op.input_dilation))
    unread = tuple((p - e) % s for p, e, s in zip(size, geometry.extents, op.stride, strict=True))
    backward = replace(made.operation, input_shape=made.canonical_output, transposed=True, output_padding=unread)
    if not copies_elements(op):
        backward, size = replace(backward, pad_begin=op.pad_begin, pad_end=op.pad_end), unpadded
    sources, rows = made.in_channels, made.out_channels
    return Geometry(backward, made.batch, rows, sources, made.output_size, made.kernel, made.extents, size)


def copies_elements(op: Operation) -> bool:
    """Whether its padding mode reads elements of the input."""
    return op.padding_mode not in ("zeros", "constant")


def has_unit_stride(op: Operation) -> bool:
    """Whether a transposed convolution is a forward one of its input alone, without zeros in between."""
    return op.transposed and all(step == 1 for step in op.stride)


@lru_cache(REMEMBERED)
def as_forward(backward: Geometry) -> Geometry:
    """A transposed convolution of unit stride as the forward one that it is, of the weight turned by 180 degrees with
    its channels exchanged. That is cheaper, but for its zeros around the input it is not the same where the weight is
    not finite.
    """
    op = backward.operation
    begin, end = (
        tuple(e - 1 - amount for e, amount in zip(backward.extents, amounts, strict=True))
        for amounts in (op.pad_begin, op.pad_end)
    )
    shape = (backward.out_channels, backward.channels_per_group, *backward.kernel)
    forward = replace(op, weight_shape=shape, pad_begin=begin, pad_end=end, transposed=False, output_padding=())
    return replace(backward, operation=forward)


def exchanges(made: Geometry) -> bool:
    """Whether the weight's gradient, summed over the windows of the source in the correlation, is cheaper summed over
    those of the rows, as that of its input_gradient as_forward: they are fewer channels.
    """
    kernels = made.out_channels // made.operation.groups
    return (
        all(step == 1 for step in made.operation.stride)
        and 2 * kernels <= made.channels_per_group
        and prod(made.input_size) <= 2 * prod(made.output_size)
        and prod(made.kernel) > 1
    )


@dataclass(frozen=True, slots=True)
class Block:
    """Groups by items by rows of the first spatial dimension: what one matrix product of the weight's gradient sums."""

    groups: int
    items: int
    rows: int


def weight_block(made: Geometry, itemsize: int) -> Block:
    """The largest block of the correlation `made` whose columns and rows fit COLUMNS_BYTES (or the gradient of a group,
    if that is larger: it is added to after each block): whole groups, or items of one group, or rows of one item; at
    least one row.
    """
    height, groups = made.output_size[0], made.operation.groups
    kernels = made.out_channels // groups
    limit = max(methods.COLUMNS_BYTES, kernels * made.sum_length * itemsize)
    row = (made.sum_length + kernels) * prod(made.output_size[1:]) * itemsize
    item = row * height
    return Block(
        min(groups, max(1, limit // (item * made.batch))),
        min(made.batch, max(1, limit // item)),
        min(height, max(1, limit // row)),
    )
