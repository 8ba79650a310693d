"""Arrays between the caller's layout and the canonical one, (N, C, *S) and (O, C/groups, *K), and the padded input.
Views where possible.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convolver.core import methods
from convolver.core.backends import Array, last
from convolver.core.geometry import Geometry
from convolver.core.operation import Operation
from convolver.core.parameters import PaddingMode

BORDER_BYTES = 128 << 10
"""What is read at one time to fill a border."""

POSITION_BYTES = 64
"""What finding the source of one position takes, at most: eight-byte integers and their copies."""


def canonical_input(op: Operation, array: Array) -> Array:
    """(N, C, *S), a view."""
    batched = array if op.batched else array.reshape(1, *array.shape)  # newaxis has stride 0, which torch misreads
    return batched if op.layout == "channels_first" else np.moveaxis(batched, -1, 1)


def canonical_weight(op: Operation, array: Array) -> Array:
    """(O, C/groups, *K), transposed (C, O/groups, *K), turned by 180 degrees for a true convolution; a view."""
    if op.layout == "channels_last":
        array = array.transpose(-1, -2, *range(array.ndim - 2))
    return np.flip(array, tuple(range(2, array.ndim))) if op.flip else array


def forward_weight(geometry: Geometry, canonical: Array) -> Array:
    """The canonical weight of a transposed convolution, (C, O/groups, *K), as that of the forward one that it is of the
    dilated input: (O, C/groups, *K), turned by 180 degrees. A forward one as it is.
    """
    op = geometry.operation
    if not op.transposed:
        return canonical
    grouped = canonical.reshape(op.groups, geometry.channels_per_group, -1, *geometry.kernel).swapaxes(1, 2)
    turned = np.flip(grouped, tuple(range(3, grouped.ndim)))
    return turned.reshape(geometry.out_channels, geometry.channels_per_group, *geometry.kernel)


def in_layout(op: Operation, canonical: Array) -> Array:
    """An output (N, O, *S) in the operation's layout, a view."""
    array = canonical if op.layout == "channels_first" else np.moveaxis(canonical, 1, -1)
    return array if op.batched else array[0]


def source_positions(mode: PaddingMode, first: int, count: int, length: int) -> NDArray[np.intp]:
    """The elements of a dimension of `length` that the positions first, first+1... read, by any amount outside it
    (docs/parameters.md: m mod n, clamp, and the two mirrors; NumPy >= 2 agrees).
    """
    m = np.arange(first, first + count)
    if mode == "circular":
        return m % length
    if mode == "replicate":
        return np.clip(m, 0, length - 1)
    if mode == "symmetric":
        j = m % (2 * length)
        return np.where(j < length, j, 2 * length - 1 - j)
    if length == 1:
        return np.zeros(count, np.intp)
    j = m % (2 * length - 2)
    return np.where(j < length, j, 2 * length - 2 - j)


def padded(geometry: Geometry, x: Array, dtype: np.dtype[np.generic]) -> Array:
    """The canonical input in `dtype`: dilated, then cropped, then padded. Copies only what must be copied, once."""
    op = geometry.operation
    if not methods.needs_padded_copy(geometry):
        return x.astype(dtype, copy=False)
    out = np.empty((*x.shape[:2], *geometry.padded_size), dtype)
    middle = tuple(
        slice(max(begin, 0), size - max(end, 0))
        for begin, end, size in zip(op.pad_begin, op.pad_end, geometry.padded_size, strict=True)
    )
    if any(d > 1 for d in op.input_dilation):
        out[last(*middle)] = 0
    _place(geometry, x, out)
    if op.padding_mode in ("zeros", "constant"):
        _fill(out, middle, op.padding_value)
    else:
        _fill_borders(op.padding_mode, out, middle)
    return out


def _place(geometry: Geometry, x: Array, out: Array) -> None:
    """Puts each element of x that is not cropped where it belongs."""
    op = geometry.operation
    sources, targets = [], []
    for size, step, begin, end, total in zip(
        geometry.input_size, op.input_dilation, op.pad_begin, op.pad_end, geometry.padded_size, strict=True
    ):
        first = -(-max(0, -begin) // step)
        stop = min(size, -(-(total - max(end, 0) - begin) // step))
        sources.append(slice(first, max(first, stop)))
        targets.append(
            slice(
                begin + first * step,
                begin + first * step + max(0, (stop - first - 1) * step + 1) if stop > first else 0,
                step,
            )
        )
    if all(s.stop > s.start for s in sources):
        out[last(*targets)] = x[last(*sources)]


def _fill(out: Array, middle: tuple[slice, ...], value: float) -> None:
    """Sets all but the middle to one value, each element once."""
    for d, inner in enumerate(middle):
        for border in (slice(0, inner.start), slice(inner.stop, None)):
            out[last(*middle[:d], border, *(slice(None),) * (len(middle) - d - 1))] = value


def _fill_borders(mode: PaddingMode, out: Array, middle: tuple[slice, ...]) -> None:
    """Copies elements of the middle into the borders, one dimension after the other, so that corners come right by
    themselves; so many positions at a time that what is read of them stays small.
    """
    for d, inner in enumerate(middle):
        outer, rest = (slice(None),) * d, middle[d + 1 :]
        row = out[last(*outer, slice(0, 1), *rest)].nbytes + POSITION_BYTES
        step = max(1, BORDER_BYTES // row)
        for border in (range(inner.start), range(inner.stop, out.shape[2 + d])):
            for first in border[::step]:
                count = min(step, border.stop - first)
                read = source_positions(mode, first - inner.start, count, inner.stop - inner.start) + inner.start
                out[last(*outer, slice(first, first + count), *rest)] = out[last(*outer, read, *rest)]
