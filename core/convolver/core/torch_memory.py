"""What torch allocates on a CPU for a convolution beside input, weight and output, from integers.

Read from torch 2.13 (ATen/native/Convolution.cpp and what it calls) and held to what happens by
tests/core/test_plan_memory.py.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from operator import ge

from convolver.core import dtypes, methods, onednn
from convolver.core.geometry import Geometry, dilated
from convolver.core.onednn import Call
from convolver.core.operation import Operation

ATENS_OWN = 20480
"""Elements of an item's first channels and rows up to which ATen keeps float32 from oneDNN."""

POSITION_BYTES = 40
"""What reading by index takes for each position of a dimension."""


def workspace_bytes(geometry: Geometry, threads: int = 1) -> int:
    """The most that stands at one time: operands in the accumulator's type, the input dilated, padded and regrouped,
    what the call takes with its result, and the result activated, turned round and rounded.
    """
    op = geometry.operation
    if not geometry.output_batch:
        return 0
    narrow, wide = dtypes.TABLE[op.dtype], op.accumulator
    copied = wide is not narrow
    weight = prod(op.weight_shape) * wide.itemsize if copied or op.flip or op.layout == "channels_last" else 0
    sent = prod(op.input_shape) * wide.itemsize if copied else 0
    before, made = _padded(geometry, wide.itemsize)
    call = _call(geometry)
    during = made + _call_bytes(geometry, call, wide, threads)
    return weight + sent + max(before, during, _after(geometry, call, wide, threads)) - geometry.output_bytes


def _padded(geometry: Geometry, size: int) -> tuple[int, int]:
    """Bytes while the input is dilated, padded and regrouped one after the other, and those that are held then."""
    op = geometry.operation
    if op.transposed:
        return 0, 0
    planes, lengths = geometry.batch * geometry.in_channels, list(map(dilated, geometry.input_size, op.input_dilation))
    stages, positions = [0], 0
    if any(d > 1 for d in op.input_dilation):
        stages.append(planes * prod(lengths))
    if _is_by_index(op):
        for d, length in enumerate(geometry.padded_size):
            if op.pad_begin[d] or op.pad_end[d]:
                lengths[d] = length
                stages.append(planes * prod(lengths))
                positions = max(positions, length)
    elif op.padding_mode in ("zeros", "constant") and not _is_torchs(op):
        lengths = list(geometry.padded_size)
        stages.append(planes * prod(lengths))
    held = stages[-1]
    if op.batch_groups > 1:  # of one channel a view of what was before, which ATen copies
        stages.append(planes * prod(lengths))
        held = stages[-1] + (held if geometry.in_channels == 1 else 0)
    most = max((a + b for a, b in pairwise(stages)), default=0)
    return most * size + positions * POSITION_BYTES, held * size


def _is_torchs(op: Operation) -> bool:
    """Whether torch's own padding does it: zeros, as many on both sides."""
    return op.padding_mode == "zeros" and op.pad_begin == op.pad_end and min(op.pad_begin) >= 0


def _is_by_index(op: Operation) -> bool:
    """Whether the padding copies elements."""
    return op.padding_mode not in ("zeros", "constant") and any(op.pad_begin + op.pad_end)


def _call(geometry: Geometry) -> Call:
    op, parts = geometry.operation, geometry.operation.batch_groups
    whole = _is_torchs(op)
    spans = tuple(map(dilated, geometry.input_size, op.input_dilation))
    laid_out_anew = not op.transposed and (
        parts > 1 or any(d > 1 for d in op.input_dilation) or _is_by_index(op) or (geometry.ndim == 1 and not whole)
    )
    return Call(
        batch=geometry.output_batch,
        channels=geometry.in_channels * parts,
        out_channels=geometry.out_channels,
        groups=op.groups * parts,
        size=geometry.input_size if op.transposed else spans if whole else geometry.padded_size,
        output=methods.scatter_size(geometry) if op.transposed and not whole else geometry.output_size,
        kernel=geometry.kernel,
        stride=op.stride,
        dilation=op.dilation,
        padding=op.pad_begin if whole else (0,) * geometry.ndim,
        output_padding=op.output_padding if op.transposed and whole else (0,) * geometry.ndim,
        bias=op.has_bias and (whole or not op.transposed),
        transposed=op.transposed,
        last=op.layout == "channels_last" and not laid_out_anew,
    )


def _call_bytes(geometry: Geometry, call: Call, wide: dtypes.DType, threads: int) -> int:
    """Complex numbers: three real convolutions (Gauss), the third while two results stand and parts are added; then
    six results in one expression. What a transposed result is cut from stands beside it.
    """
    outputs = call.outputs * wide.itemsize
    if wide.kind == "complex":
        real = dtypes.TABLE["float32" if wide.name == "complex64" else "float64"]
        taken = call.inputs * real.itemsize + outputs + _real_bytes(call, real, threads)
        taken = max(taken, 6 * outputs)
    else:
        taken = _real_bytes(call, wide, threads)
    if call.transposed and call.output != geometry.output_size:
        cut = prod(geometry.canonical_output) * wide.itemsize
        taken = max(taken, outputs + (2 if geometry.operation.has_bias else 1) * cut)
    return taken


def _real_bytes(call: Call, wide: dtypes.DType, threads: int) -> int:
    if not _is_onednns(call, wide, threads):
        return _by_columns(call, wide.itemsize)
    turned = call.inputs * wide.itemsize if call.last and not _stays_last(call, wide, threads) else 0
    return turned + onednn.call_bytes(call, threads)


def _is_onednns(call: Call, wide: dtypes.DType, threads: int) -> bool:
    """ATen's use_mkldnn."""
    if wide.bits != 24 or (call.transposed and any(map(ge, call.output_padding, call.stride))):
        return False
    if len(call.kernel) == 1:
        small_kernel, rows = True, call.size[:1]
    else:
        small_kernel, rows = min(call.kernel[-2:]) <= 3, call.size[:2]
    if call.groups == 1 and call.batch == 1 and small_kernel and call.channels * prod(rows) <= ATENS_OWN:
        return False
    return threads > 1 or call.strided or call.dilated or call.batch >= 16 or any(k > 1 for k in call.kernel[-2:])


def _stays_last(call: Call, wide: dtypes.DType, threads: int) -> bool:
    """Whether channels that are innermost stay so: not in torch's own loops, nor in one dimension."""
    return onednn.is_innermost(call) and _is_onednns(call, wide, threads)


def _by_columns(call: Call, size: int) -> int:
    """ATen's own: im2col of the whole batch, or of one item (dilated; transposed in three dimensions), by groups."""
    columns = prod(call.kernel) * (prod(call.size) if call.transposed else prod(call.output))
    columns *= call.group[1] if call.transposed else call.group[0]
    if not call.transposed and call.pointwise and not call.strided and not call.dilated:
        columns = 0
    if len(call.size) < 3 if call.transposed else not call.dilated:
        columns *= call.batch
    inputs = call.inputs if call.last else 0
    if call.groups == 1:
        return (inputs + call.outputs + columns) * size
    return (inputs + call.outputs + max(call.outputs, columns + call.inputs // call.groups)) * size


def _after(geometry: Geometry, call: Call, wide: dtypes.DType, threads: int) -> int:
    """The result activated, turned round, and rounded."""
    op = geometry.operation
    outputs = prod(geometry.canonical_output) * wide.itemsize
    turned = op.layout == "channels_last" and geometry.out_channels > 1 and not _stays_last(call, wide, threads)
    activated = {"none": 0, "softplus": 2}.get(op.activation, 1)
    copies = max(activated, min(activated, 1) + turned)
    return outputs + max(copies * outputs, geometry.output_bytes if wide.name != op.output_dtype else 0)
