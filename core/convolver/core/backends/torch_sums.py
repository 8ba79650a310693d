"""Convolutions composed of what torch has: padding modes in any rank, asymmetric and negative padding, dilated input
and batch groups too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit

from convolver.core.backends import Prepared, last
from convolver.core.backends.arrays import source_positions
from convolver.core.geometry import Geometry, dilated
from convolver.core.methods import is_linear
from convolver.core.operation import Operation

_FORWARD: dict[int, Callable[..., torch.Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED: dict[int, Callable[..., torch.Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def canonical_input(op: Operation, tensor: torch.Tensor) -> torch.Tensor:
    """(N, C, *S), a view."""
    batched = tensor if op.batched else tensor[None]
    return batched if op.layout == "channels_first" else batched.movedim(-1, 1)


def in_layout(op: Operation, canonical: torch.Tensor) -> torch.Tensor:
    """An output (N, O, *S) in the operation's layout, contiguous."""
    return compact(turned(op, canonical))


def turned(op: Operation, canonical: torch.Tensor) -> torch.Tensor:
    """An output (N, O, *S) in the operation's layout, a view."""
    y = canonical if op.layout == "channels_first" else canonical.movedim(1, -1)
    return y if op.batched else y[0]


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor contiguous, with the usual strides in dimensions of length 1 too: torch chooses algorithms by them."""
    return tensor.contiguous().view(-1).view(tensor.shape)


def convolved(geometry: Geometry, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
    """The convolution (N, O, *size) of the canonical x (N, C, *S), with bias, without activation."""
    op = geometry.operation
    if not geometry.output_batch:  # torch refuses some of them
        return x.new_empty(geometry.canonical_output)
    if op.transposed:
        return _transposed(geometry, x, prepared)
    if is_linear(geometry):
        return F.linear(x.flatten(1), prepared.weight.flatten(1), prepared.bias).view(geometry.canonical_output)
    x, padding = padded(geometry, x)
    if isinstance(prepared.weight, Packed):
        return _by_packed(geometry, x, prepared)
    if geometry.in_channels == 1:  # channels last and first are the same, and oneDNN takes the one for the other
        x = compact(x)
    groups = op.groups
    if op.batch_groups > 1:
        groups = op.batch_groups
        x = x.reshape(groups, geometry.output_batch, *x.shape[1:]).transpose(0, 1).flatten(1, 2)
    return _FORWARD[geometry.ndim](x, prepared.weight, prepared.bias, op.stride, padding, op.dilation, groups)


class Packed(NamedTuple):
    """A weight in oneDNN's own layout, for inputs of one shape, and its bytes."""

    weight: torch.Tensor
    bytes: int


def pack(geometry: Geometry, weight: torch.Tensor) -> torch.Tensor | Packed:
    """The canonical weight (O, C, KH, KW), packed for a convolution that `packing.packs`; as it is where this torch
    does not offer that.
    """
    op, reorder = geometry.operation, getattr(torch.ops.mkldnn, "_reorder_convolution_weight", None)
    if reorder is None or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return weight
    shape = (geometry.batch, geometry.in_channels, *geometry.input_size)
    return Packed(reorder(weight, op.pad_begin, op.stride, op.dilation, 1, shape), weight.nbytes)


def _by_packed(geometry: Geometry, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
    op = geometry.operation
    kind: Any = (1, "none", [], "")  # one group, and nothing behind the sum
    convolve: Any = torch.ops.mkldnn._convolution_pointwise  # noqa: SLF001 - torch's own name
    y: torch.Tensor = convolve(x, prepared.weight.weight, prepared.bias, op.pad_begin, op.stride, op.dilation, *kind)
    return y


def padded(geometry: Geometry, x: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """X dilated, cropped and padded, as far as torch's own symmetric zero padding (the second value) cannot do it."""
    op, none = geometry.operation, (0,) * geometry.ndim
    if not x.numel():  # of an empty dimension the padding alone is left; torch refuses to pad some of them
        return x.new_full((*x.shape[:2], *geometry.padded_size), op.padding_value), none
    x = _dilated(geometry, x)
    if op.padding_mode == "zeros" and op.pad_begin == op.pad_end and min(op.pad_begin) >= 0:
        return x, op.pad_begin
    if op.padding_mode in ("zeros", "constant"):
        pairs = [side for d in reversed(range(geometry.ndim)) for side in (op.pad_begin[d], op.pad_end[d])]
        return F.pad(x, pairs, value=op.padding_value), none
    for d in range(geometry.ndim):
        x = _gathered(op, x, d)
    return x, none


def _dilated(geometry: Geometry, x: torch.Tensor) -> torch.Tensor:
    op = geometry.operation
    if all(step == 1 for step in op.input_dilation):
        return x
    spans = map(dilated, geometry.input_size, op.input_dilation)
    spread = x.new_zeros(*x.shape[:2], *spans)
    spread[last(*(slice(None, None, step) for step in op.input_dilation))] = x
    return spread


def _gathered(op: Operation, x: torch.Tensor, d: int) -> torch.Tensor:
    """Dimension d cropped, then padded by the positions that the mode reads."""
    begin, end = op.pad_begin[d], op.pad_end[d]
    if not (begin or end):
        return x
    length = x.shape[2 + d]
    x = x.narrow(2 + d, max(0, -begin), length - max(0, -begin) - max(0, -end))
    kept = x.shape[2 + d]
    read = source_positions(op.padding_mode, -max(begin, 0), kept + max(begin, 0) + max(end, 0), kept)
    return x.index_select(2 + d, torch.from_numpy(read).to(x.device))


def _transposed(geometry: Geometry, x: torch.Tensor, prepared: Prepared) -> torch.Tensor:
    op = geometry.operation
    convolve = _TRANSPOSED[geometry.ndim]
    symmetric = op.pad_begin == op.pad_end and min(op.pad_begin) >= 0
    if symmetric:
        return convolve(
            x, prepared.weight, prepared.bias, op.stride, op.pad_begin, op.output_padding, op.groups, op.dilation
        )
    full = convolve(x, prepared.weight, None, op.stride, 0, 0, op.groups, op.dilation)
    y = _cut(geometry, full)
    return y if prepared.bias is None else y + prepared.bias.reshape(-1, *(1,) * geometry.ndim)


def _cut(geometry: Geometry, full: torch.Tensor) -> torch.Tensor:
    """The part of `full` from pad_begin on, output_size long; positions outside it are 0."""
    pairs: list[int] = []
    for d, (begin, size) in enumerate(zip(geometry.operation.pad_begin, geometry.output_size, strict=True)):
        length = full.shape[2 + d]
        first = min(max(0, begin), length)
        kept = max(0, min(length, begin + size) - first)
        full = full.narrow(2 + d, first, kept)
        before = min(size, max(0, -begin))
        pairs = [before, size - before - kept, *pairs]
    return F.pad(full, pairs)
