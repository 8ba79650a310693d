"""How a convolution runs as products of Fourier transforms, decided from integers: overlap-save in tiles that stay in
the cache (Oppenheim and Schafer, Discrete-Time Signal Processing, section 8.7), one place for the plan and for the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import ceil, isfinite, log2, prod

from convolver.core import methods
from convolver.core.geometry import Geometry

TILE_ELEMENTS = (2**10, 2**12, 2**14, 2**16, 2**18)
"""Lengths of a tile, over all dimensions, among which the one of least work is taken. Larger ones leave the cache,
where an element costs up to four times as much.
"""

TILE_WORK = 150_000
"""What starting a tile costs beside its elements, in multiply-accumulates."""

BLOCK_ELEMENTS = 2**18
"""Elements that are transformed at one time: items, groups and channels of one tile."""

MATRIX_CHANNELS = 8
"""Channels of a group, in and out, from which on the products are matrix products, one for each frequency."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """`geometry` is the forward convolution that is computed (a transposed one becomes the forward one of the dilated
    input), `lengths` the transforms' size, `outputs` those that a tile yields, `counts` the tiles, each along each
    spatial dimension. `turned`: the result has to be turned round into its layout.
    """

    geometry: Geometry
    lengths: tuple[int, ...]
    outputs: tuple[int, ...]
    counts: tuple[int, ...]
    turned: bool

    @property
    def frequencies(self) -> int:
        """Complex numbers of a tile's spectrum; half suffice for reals."""
        last = self.lengths[-1] if self.is_complex else self.lengths[-1] // 2 + 1
        return prod(self.lengths[:-1]) * last

    @property
    def is_complex(self) -> bool:
        """Whether the transforms are of complex numbers."""
        return self.geometry.operation.accumulator.kind == "complex"

    @property
    def tiles(self) -> int:
        """Over all dimensions."""
        return prod(self.counts)

    @property
    def transformed(self) -> int:
        """Elements that go through a transform: of input and output for each tile, and of the weight once."""
        made = self.geometry
        planes = made.batch * made.in_channels + made.output_batch * made.out_channels
        return (self.tiles * planes + self.pairs) * prod(self.lengths)

    @property
    def multiplied(self) -> int:
        """Complex products, a spectrum's element with another's."""
        return self.tiles * self.geometry.output_batch * self.pairs * self.frequencies

    @property
    def pairs(self) -> int:
        """Pairs of an input and an output channel that meet."""
        return self.geometry.out_channels * self.geometry.channels_per_group

    @property
    def work(self) -> int:
        """Multiply-accumulates or their equivalents: 1.25 n log2 n for a real transform of n elements, twice that for a
        complex one; 4 for a complex product.
        """
        per_element = (2.5 if self.is_complex else 1.25) * log2(prod(self.lengths))
        return round(self.transformed * per_element) + 4 * self.multiplied

    @property
    def by_matrices(self) -> bool:
        """Whether the products over channels are matrix products."""
        made = self.geometry
        parts = made.operation.groups * made.operation.batch_groups
        return min(made.channels_per_group, made.out_channels // parts) >= MATRIX_CHANNELS

    @property
    def block(self) -> tuple[int, int]:
        """Items and groups that are transformed together."""
        made = self.geometry
        op = made.operation
        widest = max(made.channels_per_group, made.out_channels // (op.groups * op.batch_groups))
        elements = max(1, BLOCK_ELEMENTS // (widest * prod(self.lengths)))
        groups = min(op.groups, elements)
        return max(1, min(made.output_batch, elements // groups)), groups

    @property
    def launches(self) -> int:
        """Tiles, counted anew for each block of items and groups."""
        op, (items, groups) = self.geometry.operation, self.block
        blocks = -(-self.geometry.output_batch // items) * -(-op.groups // groups) * op.batch_groups
        return self.tiles * blocks

    @property
    def rows(self) -> int:
        """Planes of the input that are transformed at one time."""
        items, groups = self.block
        return items * groups * self.geometry.channels_per_group

    @property
    def workspace_bytes(self) -> int:
        """Bytes beside input, weight and output, at most: the input converted or padded; the weight spread and its
        spectra, four times while they are made (NumPy transforms one dimension after the other); what a block's
        transforms hold; the sums where they are not the output.
        """
        made, op = self.geometry, self.geometry.operation
        wide, (items, groups) = op.accumulator, self.block
        size = wide.itemsize if self.is_complex else 2 * wide.itemsize
        outputs = made.out_channels // (op.groups * op.batch_groups)
        block = items * groups * self.frequencies * size * (3 * made.channels_per_group + 4 * outputs)
        spectra = self.pairs * self.frequencies * size
        weight = self.pairs * (prod(made.extents) + prod(made.kernel)) * wide.itemsize
        total = max(4 * spectra + weight, spectra + block)
        if wide.name != op.dtype or methods.needs_padded_copy(made):
            total += made.batch * made.in_channels * prod(made.padded_size) * wide.itemsize
        copies = (wide.name != op.output_dtype) + self.turned
        return total + copies * prod(made.canonical_output) * wide.itemsize


def refusal(geometry: Geometry) -> str | None:
    """Why no transform can do it, or None."""
    op = geometry.operation
    if not isfinite(op.padding_value):
        return f"an FFT takes finite numbers alone, and padding_value is {op.padding_value}"
    if op.transposed and any(_nothing_left(geometry, d) for d in range(geometry.ndim)):
        return "its output lies wholly beside the input, where an FFT has nothing to do"
    return None


def _nothing_left(geometry: Geometry, d: int) -> bool:
    op = geometry.operation
    span = (geometry.input_size[d] - 1) * op.stride[d] + 1
    begin, end = _forward_padding(geometry, d)
    return span + min(begin, 0) + min(end, 0) <= 0


@lru_cache(1024)
def tiling(geometry: Geometry) -> Tiling:
    """The tiles with the least work."""
    forward = forward_equivalent(geometry)
    turned = geometry.operation.layout == "channels_last" and geometry.out_channels > 1
    return min(
        (_tiled(forward, elements, turned=turned) for elements in TILE_ELEMENTS),
        key=lambda t: t.work + t.launches * TILE_WORK,
    )


def forward_equivalent(geometry: Geometry) -> Geometry:
    """A transposed convolution as the forward one of its dilated input with the turned kernel, channels first; a
    forward one as it is.
    """
    op = geometry.operation
    if not op.transposed:
        return geometry
    padding = [_forward_padding(geometry, d) for d in range(geometry.ndim)]
    one = (1,) * geometry.ndim
    return Geometry.of(
        replace(
            op,
            input_shape=op.canonical_input,
            weight_shape=(geometry.out_channels, geometry.channels_per_group, *geometry.kernel),
            transposed=False,
            stride=one,
            input_dilation=op.stride,
            pad_begin=tuple(begin for begin, _ in padding),
            pad_end=tuple(end for _, end in padding),
            output_padding=(0,) * geometry.ndim,
            layout="channels_first",
            flip=False,
        )
    )


def _forward_padding(geometry: Geometry, d: int) -> tuple[int, int]:
    op, reach = geometry.operation, geometry.extents[d]
    return reach - 1 - op.pad_begin[d], reach - 1 - op.pad_end[d] + op.output_padding[d]


def _tiled(forward: Geometry, elements: int, *, turned: bool) -> Tiling:
    """Tiles of about so many elements; longer where the kernel asks for it. Each begins at its first output's place."""
    cap = round(elements ** (1 / forward.ndim))
    needed = [(size - 1) * s + 1 for size, s in zip(forward.output_size, forward.operation.stride, strict=True)]
    lengths = tuple(_length(n, e, max(cap, 2 * e)) for n, e in zip(needed, forward.extents, strict=True))
    strides = forward.operation.stride
    outputs = tuple((n - e) // s + 1 for n, e, s in zip(lengths, forward.extents, strides, strict=True))
    counts = tuple(-(-size // each) for size, each in zip(forward.output_size, outputs, strict=True))
    return Tiling(forward, lengths, outputs, counts, turned)


def _length(positions: int, extent: int, cap: int) -> int:
    """The transform length, up to `cap`, with which so many positions cost least; an element costs little more in a
    long transform than in a short one.
    """
    if positions + extent - 1 <= cap:
        cap = fast_length(positions + extent - 1)
    least = fast_length(extent)
    choices = [n for n in FAST_LENGTHS if least <= n <= cap] or [fast_length(cap)]
    return min(choices, key=lambda n: ceil(positions / (n - extent + 1)) * n * (log2(n) + 12))


FAST_LENGTHS: tuple[int, ...] = tuple(
    sorted(n for i, j, k in product(range(1, 20), range(7), range(5)) if (n := 2**i * 3**j * 5**k) <= 2**19)
)
"""Even lengths without a prime factor above 5, which are transformed fastest."""


def fast_length(least: int) -> int:
    """The first fast length of at least that."""
    found: int = next((n for n in FAST_LENGTHS if n >= least), 0)
    return found or 2 * fast_length(-(-least // 2))
