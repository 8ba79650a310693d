"""Convolution by overlap-save, for arrays of NumPy and tensors of torch alike: what they call differently is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

from convolver.core.backends import Smeared, last
from convolver.core.cancellation import checked
from convolver.core.tiling import Tiling

Tensor = Any
"""An array of NumPy or a tensor of torch."""

Transform = Callable[[Tensor, tuple[int, ...]], Tensor]


class Library(NamedTuple):
    """`forward` transforms the last dimensions, padded with zeros at the end to these lengths (of reals half a
    spectrum), and `inverse` turns it back. `zeros` and `empty` make an array of a shape and of another's type and
    device; `finite` says where elements are.
    """

    forward: Transform
    inverse: Transform
    contiguous: Callable[[Tensor], Tensor]
    zeros: Callable[[tuple[int, ...], Tensor], Tensor]
    empty: Callable[[tuple[int, ...], Tensor], Tensor]
    finite: Callable[[Tensor], Tensor]


def spectra(tiling: Tiling, library: Library, w: Tensor) -> Tensor:
    """Of the weight w (O, C/groups, *K), conjugate, with P = groups * batch_groups: (P, O/P, C/groups, *F), or for
    matrix products (P, frequencies, O/P, C/groups).
    """
    made = tiling.geometry
    parts = made.operation.groups * made.operation.batch_groups
    spread = library.zeros((parts, made.out_channels // parts, made.channels_per_group, *made.extents), w)
    steps = tuple(slice(None, None, d) for d in made.operation.dilation)
    spread[last(*steps)] = w.reshape(*spread.shape[:3], *made.kernel)
    transformed = library.forward(spread.conj() if tiling.is_complex else spread, tiling.lengths).conj()
    if not tiling.by_matrices:
        return transformed
    flat = transformed.reshape(*spread.shape[:3], tiling.frequencies)
    return library.contiguous(flat.swapaxes(1, 3).swapaxes(2, 3))


def convolved(tiling: Tiling, library: Library, x: Tensor, weights: Tensor) -> Tensor:
    """The convolution (N, O, *size) of the padded input x (N, C, *P) with the weight that has these spectra.

    Raises Smeared where a sum is not finite: a transform mixes all elements, so none of them can be believed then.
    """
    made = tiling.geometry
    op, batch = made.operation, made.output_batch
    parts = op.groups * op.batch_groups
    out = library.empty(made.canonical_output, x)
    if not out.shape[0]:
        return out
    columns = x.reshape(op.batch_groups, batch, op.groups, made.channels_per_group, *made.padded_size)
    target = out.reshape(batch, parts, made.out_channels // parts, *made.output_size)
    places = [list(_places(tiling, d)) for d in range(made.ndim)]
    for part, items, groups in _blocks(tiling):
        kept = slice(part * op.groups + groups.start, part * op.groups + groups.stop)
        for tile in checked(product(*places)):
            read, cut, write = zip(*tile, strict=True)
            block = library.forward(columns[(part, items, groups, slice(None), *read)], tiling.lengths)
            sums = library.inverse(_products(tiling, library, block, weights[kept]), tiling.lengths)
            if not library.finite(sums).all():
                raise Smeared
            target[(items, kept, slice(None), *write)] = sums[last(*cut)]
    return out


def _blocks(tiling: Tiling) -> Iterator[tuple[int, slice, slice]]:
    """Part of the batch, items and groups."""
    op, batch = tiling.geometry.operation, tiling.geometry.output_batch
    items, groups = tiling.block
    for part, n, g in product(range(op.batch_groups), range(0, batch, items), range(0, op.groups, groups)):
        yield part, slice(n, min(batch, n + items)), slice(g, min(op.groups, g + groups))


def _places(tiling: Tiling, d: int) -> Iterator[tuple[slice, slice, slice]]:
    """Along dimension d, for each tile: the positions that it reads, those of its result that count, and where in the
    output they belong.
    """
    stride, size, each = tiling.geometry.operation.stride[d], tiling.geometry.output_size[d], tiling.outputs[d]
    for first in range(0, size, each):
        stop = min(size, first + each)
        cut = slice(0, (stop - first - 1) * stride + 1, stride)
        yield slice(first * stride, first * stride + tiling.lengths[d]), cut, slice(first, stop)


def _products(tiling: Tiling, library: Library, block: Tensor, weights: Tensor) -> Tensor:
    """Of the spectra of a block (n, g, C/groups, *F) with the weight's, summed over channels: (n, g, O/P, *F)."""
    if tiling.by_matrices:
        return _by_matrices(tiling, library, block, weights)
    sums = block[:, :, None, 0] * weights[:, :, 0]
    for c in range(1, block.shape[2]):
        sums += block[:, :, None, c] * weights[:, :, c]
    return sums


def _by_matrices(tiling: Tiling, library: Library, block: Tensor, weights: Tensor) -> Tensor:
    """One matrix product for each group and frequency."""
    n, g, c, *spectrum = block.shape
    flat = block.reshape(n, g, c, tiling.frequencies)
    columns = library.contiguous(flat.swapaxes(0, 1).swapaxes(1, 3))
    sums = (weights @ columns).swapaxes(1, 3).swapaxes(0, 1)
    return sums.reshape(n, g, -1, *spectrum)
