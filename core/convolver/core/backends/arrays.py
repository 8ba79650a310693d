"""Arrays between the caller's layout and the canonical one, (N, C, *S) and (O, C/groups, *K), and the padded input.
Views where possible.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from convolver.core.backends import Array, last
from convolver.core.geometry import Geometry
from convolver.core.operation import Operation
from convolver.core.parameters import PaddingMode


def canonical_input(op: Operation, array: Array) -> Array:
    """(N, C, *S), a view."""
    batched = array if op.batched else array[np.newaxis]
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
    """An output (N, O, *S) in the operation's layout, contiguous."""
    array = canonical if op.layout == "channels_first" else np.moveaxis(canonical, 1, -1)
    return np.ascontiguousarray(array if op.batched else array[0])


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
    if not _changes(op):
        return x.astype(dtype, copy=False)
    shape = (*x.shape[:2], *geometry.padded_size)
    constant = op.padding_value if op.padding_mode == "constant" else 0
    out = np.full(shape, constant, dtype) if constant else np.zeros(shape, dtype)
    middle = tuple(
        slice(max(begin, 0), size - max(end, 0))
        for begin, end, size in zip(op.pad_begin, op.pad_end, geometry.padded_size, strict=True)
    )
    if constant and any(d > 1 for d in op.input_dilation):
        out[last(*middle)] = 0
    _place(geometry, x, out)
    if op.padding_mode not in ("zeros", "constant"):
        _fill_borders(op.padding_mode, out, middle)
    return out


def _changes(op: Operation) -> bool:
    return not op.transposed and (any(op.pad_begin) or any(op.pad_end) or any(d > 1 for d in op.input_dilation))


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


def _fill_borders(mode: PaddingMode, out: Array, middle: tuple[slice, ...]) -> None:
    """Copies elements of the middle into the borders, one dimension after the other, so that corners come right by
    themselves.
    """
    ndim = len(middle)
    for d, inner in enumerate(middle):
        outer = (slice(None),) * d
        rest = middle[d + 1 :]
        length = inner.stop - inner.start
        for first, count in ((-inner.start, inner.start), (length, out.shape[2 + d] - inner.stop)):
            if count:
                target = slice(first + inner.start, first + inner.start + count)
                read = source_positions(mode, first, count, length) + inner.start
                out[last(*outer, target, *rest)] = out[last(*outer, slice(None), *rest)].take(
                    read, axis=out.ndim - ndim + d
                )
