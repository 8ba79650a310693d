"""A convolution in pieces, so that it starts before its input has come whole, and its first results leave before the
last are computed: batch items, or rows with their halo. A function of the plan alone, never of when bytes came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import NamedTuple

from convolver.core import cost
from convolver.core.dtypes import TABLE
from convolver.core.geometry import Geometry, dilated, spatial_axis
from convolver.core.operation import LARGEST, Execution, Operation, Tensor
from convolver.core.packing import packs
from convolver.core.plan import Plan
from convolver.core.stack_plan import StackPlan

PIECE_BYTES = 4 << 20
"""Of a piece's input and output together."""

LEAST_WEIGHTS = 8
"""How many times the weight's bytes a piece has at least: each reads it anew, or even lays it out anew."""

LEAST_HALOS = 8
"""How many rows of its own a piece has for each that it reads again."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of one convolution that can run by itself, with the weights that were prepared for the whole.

    `input` and `output` are the indices of its slabs, in the operation's layout. It can run as soon as the first
    `input_bytes` of the input have come, in row-major order; the first `output_bytes` of the output are final once it
    and those before it have run.
    """

    plan: Plan
    input: tuple[slice, ...]
    output: tuple[slice, ...]
    input_bytes: int
    output_bytes: int


class _Part(NamedTuple):
    """Items of the batch, rows of the output in its first spatial dimension, the rows of the input that these read, and
    the padding around them.
    """

    items: slice
    rows: slice
    read: slice
    pad_begin: int
    pad_end: int

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Items, rows of the input, and the padding around them: all that its plan depends on."""
        items, read = (part.stop - part.start for part in (self.items, self.read))
        return items, read, self.pad_begin, self.pad_end


def pieces(plan: Plan | StackPlan, planned: Callable[[Geometry, Execution], Plan]) -> tuple[Piece, ...]:
    """The pieces of a convolution in the order in which they run, or none where it runs whole. `planned` chooses what
    runs a part.
    """
    if isinstance(plan, StackPlan) or not _can_be_cut(plan):
        return ()
    parts = list(_parts(plan.geometry))
    if len(parts) < 2 or not all(_has_what_it_mirrors(plan.geometry, part) for part in parts):
        return ()
    plan_of = cache(lambda *sizes: _alike(plan, Geometry.of(_operation(plan.operation, *sizes)), planned))
    made = tuple(_piece(plan, plan_of(*part.sizes), part) for part in parts)  # most are of one size
    alike = all((each.plan.backend, each.plan.algorithm) == (plan.backend, "direct") for each in made)
    return made if alike else ()


def pieces_workspace_bytes(made: tuple[Piece, ...]) -> int:
    """Bytes beside the whole's input, weight and output while its pieces run one after the other, each into its slab:
    that of the largest, with a result of its own.
    """
    return max(each.plan.workspace_bytes + each.plan.output_bytes for each in made)


def _can_be_cut(plan: Plan) -> bool:
    whole = plan.wanted or plan.execution.deterministic or plan.algorithm != "direct" or packs(plan)
    return not (whole or plan.operation.batch_groups > 1 or _may_refuse(plan.geometry))


def _may_refuse(geometry: Geometry) -> bool:
    """Whether integers of some values have no answer: the first that has none is to be named as by the whole."""
    op, (x, out) = geometry.operation, (TABLE[dtype] for dtype in (geometry.operation.dtype, geometry.output.dtype))
    if not x.exact or out.kind == "bool" or (op.overflow == "wrap" and out.exact):
        return False
    largest = (1 << x.bits) - (x.kind != "int")
    bound = geometry.sum_length * largest**2 + largest
    most = out if out.exact and op.overflow == "error" else TABLE[x.accumulator]
    return bound >= 1 << most.bits


def _parts(geometry: Geometry) -> Iterator[_Part]:
    """Some items, or some rows of one item."""
    op, rows = geometry.operation, geometry.output_size[0]
    size = op.accumulator.itemsize
    elements = prod(op.input_shape) + prod(geometry.output_shape)
    item = elements * size // max(1, geometry.batch)
    least = max(PIECE_BYTES, LEAST_WEIGHTS * prod(op.weight_shape) * size)
    if item <= least or not _rows_travel_in_order(geometry):
        for items in _slices(geometry.batch, max(1, least // max(1, item))):
            yield _Part(items, slice(0, rows), slice(0, geometry.input_size[0]), op.pad_begin[0], op.pad_end[0])
        return
    halo = max(0, geometry.extents[0] - op.stride[0]) // op.stride[0]
    for first in range(geometry.batch):
        for some in _slices(rows, max(1, least * rows // item, LEAST_HALOS * halo)):
            yield _rows(geometry, slice(first, first + 1), some)


def _slices(total: int, most: int) -> Iterator[slice]:
    """As few as there must be, as even as they can be with one length for all but the last."""
    step = -(-total // max(1, -(-total // most)))
    return (slice(first, min(total, first + step)) for first in range(0, total, max(1, step)))


def _rows_travel_in_order(geometry: Geometry) -> bool:
    """Whether an item's rows lie one after the other, in the input and in the output."""
    alone = geometry.in_channels == geometry.out_channels == 1
    return not geometry.operation.transposed and (alone or geometry.operation.layout == "channels_last")


def _rows(geometry: Geometry, items: slice, rows: slice) -> _Part:
    """The rows of the input that these of the output read. What they do not read of gaps between dilated rows is
    cropped.
    """
    op, size, step = geometry.operation, geometry.input_size[0], geometry.operation.input_dilation[0]
    first = rows.start * op.stride[0] - op.pad_begin[0]
    stop = (rows.stop - 1) * op.stride[0] - op.pad_begin[0] + geometry.extents[0]
    if not size or stop <= 0 or first >= dilated(size, step):
        edge = 0 if stop <= 0 else size
        return _Part(items, rows, slice(edge, edge), stop - first, 0)
    read = slice(max(0, first) // step, min(size, -((1 - stop) // step) + 1))
    return _Part(items, rows, read, read.start * step - first, stop - 1 - (read.stop - 1) * step)


def _has_what_it_mirrors(geometry: Geometry, part: _Part) -> bool:
    """Whether the padding of these rows, where it copies elements, copies such as they have."""
    op, (_, read, *pads) = geometry.operation, part.sizes
    if op.padding_mode in ("zeros", "constant") or max(pads) <= 0:
        return True
    if (read, *pads) == (geometry.input_size[0], op.pad_begin[0], op.pad_end[0]):
        return True
    kept = dilated(read, op.input_dilation[0]) + sum(min(0, pad) for pad in pads)
    reach = {"circular": 0, "reflect": kept - 1, "symmetric": kept, "replicate": LARGEST if kept else 0}
    return max(pads) <= reach[op.padding_mode]


def _operation(op: Operation, items: int, read: int, pad_begin: int, pad_end: int) -> Operation:
    """That of a part alone."""
    shape = list(op.input_shape)
    if op.batched:
        shape[0] = items
    shape[spatial_axis(op, 0)] = read
    begin, end = (pad_begin, *op.pad_begin[1:]), (pad_end, *op.pad_end[1:])
    return replace(op, input_shape=tuple(shape), pad_begin=begin, pad_end=end)


def _alike(whole: Plan, geometry: Geometry, planned: Callable[[Geometry, Execution], Plan]) -> Plan:
    """The plan of a part, on as many threads as the whole, which what it takes depends on."""
    plan = planned(geometry, replace(whole.execution, backend=whole.backend, algorithm="direct"))
    workspace = cost.estimate(geometry, plan.backend, whole.threads, plan.algorithm).workspace_bytes
    return replace(plan, threads=whole.threads, workspace_bytes=workspace)


def _piece(whole: Plan, plan: Plan, part: _Part) -> Piece:
    geometry = whole.geometry
    return Piece(
        plan,
        _index(geometry.operation, part.items, part.read),
        _index(geometry.operation, part.items, part.rows),
        _bytes_until(whole.input, geometry.batch, geometry.input_size[0], part.items, part.read),
        _bytes_until(whole.output, geometry.batch, geometry.output_size[0], part.items, part.rows),
    )


def _index(op: Operation, items: slice, rows: slice) -> tuple[slice, ...]:
    before = (slice(None),) if op.layout == "channels_first" else ()
    return (*((items,) if op.batched else ()), *before, rows)


def _bytes_until(tensor: Tensor, batch: int, height: int, items: slice, rows: slice) -> int:
    """The bytes of a tensor up to the last of these rows of the last of these items."""
    item = prod(tensor.shape) // batch * TABLE[tensor.dtype].itemsize
    until: int = item if rows.stop == height else rows.stop * (item // height)
    return until + item * (items.stop - 1)  # type: ignore[no-any-return]  # a slice's numbers
