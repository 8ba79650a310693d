"""What torch allocates on a CPU for a convolution beside input, weight and output, from integers.

Read from torch 2.13 (ATen/native/Convolution.cpp and what it calls) and oneDNN 3.12 (cpu/cpu_convolution_list.cpp and
what it names), and held to what happens by tests/core/test_plan_memory.py. Widths are those of AVX-512.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod
from operator import ge
from typing import NamedTuple

from convolver.core import dtypes, methods
from convolver.core.geometry import Geometry, dilated, extent
from convolver.core.operation import Operation

ONEDNN_BLOCK = 16
"""oneDNN lays channels out in blocks of 16, which is where torch's memory for few channels goes."""

ATENS_OWN = 20480
"""Elements of an item's first channels and rows up to which ATen keeps float32 from oneDNN."""

LARGEST_PADDING, LARGEST_DEPTHWISE_PADDING = 28, 6
"""What oneDNN's own kernels take on one side; above it computes by im2col."""

COLUMNS_LIMIT = 1 << 30
"""Bytes of im2col that oneDNN allows itself."""

POSITION_BYTES = 40
"""What reading by index takes for each position of a dimension."""


class _Call(NamedTuple):
    """One call of conv or conv_transpose, as ATen gets it. `last`: the input's channels are innermost in memory."""

    batch: int
    channels: int
    out_channels: int
    groups: int
    size: tuple[int, ...]
    output: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    last: bool

    @property
    def inputs(self) -> int:
        return self.batch * self.channels * prod(self.size)

    @property
    def outputs(self) -> int:
        return self.batch * self.out_channels * prod(self.output)

    @property
    def group(self) -> tuple[int, int]:
        """Channels in and out of one group."""
        return self.channels // self.groups, self.out_channels // self.groups

    @property
    def pointwise(self) -> bool:
        return all(k == 1 for k in self.kernel) and not any(self.padding)

    @property
    def strided(self) -> bool:
        return any(s > 1 for s in self.stride)

    @property
    def dilated(self) -> bool:
        return any(d > 1 for d in self.dilation)

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.group == (1, 1)

    @property
    def beside(self) -> bool:
        """Whether a kernel can lie wholly in the padding, or the padding is too much for oneDNN's own kernels."""
        most = LARGEST_DEPTHWISE_PADDING if self.depthwise else LARGEST_PADDING
        pairs = zip(self.padding, map(extent, self.kernel, self.dilation), strict=True)
        return any(p >= e or p > most for p, e in pairs)


def workspace_bytes(geometry: Geometry, threads: int = 1) -> int:
    """The most that stands at one time: operands in the accumulator's type, the input dilated, padded and regrouped,
    what the call takes with its result, and the result activated, turned round and rounded.
    """
    op = geometry.operation
    narrow, wide = dtypes.TABLE[op.dtype], dtypes.accumulator(dtypes.TABLE[op.dtype], dtypes.TABLE[op.output_dtype])
    copied = wide is not narrow
    weight = prod(op.weight_shape) * wide.itemsize if copied or op.flip or op.layout == "channels_last" else 0
    sent = prod(op.input_shape) * wide.itemsize if copied else 0
    before, made = _padded(geometry, wide.itemsize)
    call = _call(geometry)
    during = made + _call_bytes(geometry, call, wide, threads)
    return (
        weight
        + sent
        + max(before, during, _after(geometry, wide, _stays_last(call, wide, threads)))
        - geometry.output_bytes
    )


def blocked(channels: int) -> int:
    """Channels in whole blocks of oneDNN."""
    return -(-channels // ONEDNN_BLOCK) * ONEDNN_BLOCK


def _padded(geometry: Geometry, size: int) -> tuple[int, int]:
    """Bytes while the input is dilated, padded and regrouped one after the other, and those of what comes of it."""
    op = geometry.operation
    if op.transposed:
        return 0, 0
    planes, lengths = geometry.batch * geometry.in_channels, list(map(dilated, geometry.input_size, op.input_dilation))
    stages, positions = [0], 0
    if any(d > 1 for d in op.input_dilation):
        stages.append(planes * prod(lengths))
    if op.padding_mode not in ("zeros", "constant"):
        for d, length in enumerate(geometry.padded_size):
            if op.pad_begin[d] or op.pad_end[d]:
                lengths[d] = length
                stages.append(planes * prod(lengths))
                positions = max(positions, length)
    elif not _is_torchs(op):
        lengths = list(geometry.padded_size)
        stages.append(planes * prod(lengths))
    if op.batch_groups > 1:
        stages.append(planes * prod(lengths))
    most = max((a + b for a, b in pairwise(stages)), default=0)
    return most * size + positions * POSITION_BYTES, stages[-1] * size


def _is_torchs(op: Operation) -> bool:
    """Whether torch's own padding does it: zeros, as many on both sides."""
    return op.padding_mode == "zeros" and op.pad_begin == op.pad_end and min(op.pad_begin) >= 0


def _call(geometry: Geometry) -> _Call:
    op, parts = geometry.operation, geometry.operation.batch_groups
    whole = _is_torchs(op)
    spans = tuple(map(dilated, geometry.input_size, op.input_dilation))
    laid_out_anew = not op.transposed and (
        parts > 1
        or any(d > 1 for d in op.input_dilation)
        or (not whole and (geometry.ndim == 1 or op.padding_mode not in ("zeros", "constant")))
    )
    return _Call(
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
        transposed=op.transposed,
        last=op.layout == "channels_last" and not laid_out_anew,
    )


def _call_bytes(geometry: Geometry, call: _Call, wide: dtypes.DType, threads: int) -> int:
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


def _real_bytes(call: _Call, wide: dtypes.DType, threads: int) -> int:
    if not _is_onednns(call, wide, threads):
        return _by_columns(call, wide.itemsize)
    turned = call.inputs * wide.itemsize if call.last and not _stays_last(call, wide, threads) else 0
    return turned + (_transposed_bytes(call, threads) if call.transposed else _forward_bytes(call))


def _is_onednns(call: _Call, wide: dtypes.DType, threads: int) -> bool:
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


def _stays_last(call: _Call, wide: dtypes.DType, threads: int) -> bool:
    """Whether channels that are innermost stay so: not in torch's own loops, nor in one dimension."""
    return _is_innermost(call) and _is_onednns(call, wide, threads)


def _by_columns(call: _Call, size: int) -> int:
    """torch's own: im2col of the whole batch, or of one item (dilated; transposed in three dimensions), by groups."""
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


def _is_innermost(call: _Call) -> bool:
    """Whether oneDNN gets channels that are innermost, and leaves them so: ATen turns them round in one dimension."""
    return call.last and (len(call.size) > 1 or call.channels == 1)


def _in_blocks(channels: int, size: int) -> int:
    """Bytes of so many channels in whole blocks."""
    return size * blocked(channels) // channels


def _forward_bytes(call: _Call) -> int:
    """oneDNN's: input and output copied to its own layout and back. Few channels take the place of a block, unless they
    are grouped, which it computes in fours or, by im2col, as they are.
    """
    inputs, outputs = 4 * call.inputs, 4 * call.outputs
    if _is_innermost(call):
        return outputs
    volume, apart = len(call.size) == 3, call.groups > 1 and not call.depthwise
    if call.beside or (volume and call.depthwise and call.dilated) or (apart and any(n % 4 for n in call.group)):
        columns = 4 * call.group[0] * prod(call.kernel) * prod(call.output[1:]) if volume else 0
        return outputs + max(outputs, columns)
    if apart or (call.depthwise and volume):
        return outputs + max(inputs, outputs)
    first = call.groups == 1 and call.channels < ONEDNN_BLOCK and not (call.pointwise and _reads_all(call))
    return _in_blocks(call.out_channels, outputs) + max(0 if first else _in_blocks(call.channels, inputs), outputs)


def _reads_all(call: _Call) -> bool:
    """Whether oneDNN's kernels for 1x1 take the strides: none, or such as divide the size in up to two dimensions."""
    exact = all(s * n == i for s, n, i in zip(call.stride, call.output, call.size, strict=True))
    return not call.strided or (exact and len(call.size) < 3)


def _transposed_bytes(call: _Call, threads: int) -> int:
    """The same, transposed: by matrix products with strides, where results pass through two more arrays, and rows are
    copied with their channels in blocks where the stride does not divide the output's.
    """
    inputs, outputs = 4 * call.inputs, 4 * call.outputs
    (c, o), rows = call.group, 0
    if call.strided and not call.dilated and call.output[-1] % call.stride[-1]:
        rows = 4 * min(threads, 2 * call.batch) * call.groups * blocked(c) * prod(call.size)
    if _is_innermost(call):
        if not call.dilated if call.strided else not call.beside:
            return outputs + rows
        columns = o * prod(call.kernel) * prod(call.size)
        return outputs + 4 * columns + (outputs // (call.batch * call.groups) if call.groups > 1 else 0)
    if call.strided and not call.dilated and (call.groups == 1 or c > ONEDNN_BLOCK // 2):
        return outputs + max(inputs + rows, 2 * outputs)
    if _transposes_by_columns(call):
        return outputs + max(outputs, _transposed_columns(call, threads))
    if call.groups > 1 and not call.depthwise:
        return outputs + max(inputs, outputs)
    return _in_blocks(call.out_channels, outputs) + max(_in_blocks(call.channels, inputs), outputs)


def _transposes_by_columns(call: _Call) -> bool:
    """Whether oneDNN's own kernels for blocks of channels refuse it (jit_avx512_common_conv_kernel.cpp)."""
    if call.beside:
        return True
    if call.depthwise:
        return call.dilated or len(call.size) == 3
    if call.strided or (call.groups > 1 and any(n % 4 for n in call.group)):
        return True
    blocks = blocked(call.out_channels) // ONEDNN_BLOCK
    together = max(n for n in range(1, 5) if blocks % n == 0)
    registers = 28 if call.kernel[-1] > 4 else 31 // (together + 1)
    return (call.kernel[-1] - 1) * call.dilation[-1] - call.padding[-1] > registers


def _transposed_columns(call: _Call, threads: int) -> int:
    """Bytes of oneDNN's im2col, of one item and group and plane for each thread (jit_gemm_convolution_utils::init_conf)."""
    (c, o), kernel = call.group, prod(call.kernel)
    if call.pointwise and not call.strided:
        return 0
    places, made = (prod(size[1:] if len(size) == 3 else size) for size in (call.size, call.output))
    work, inner = call.groups * call.batch, -(-made // ONEDNN_BLOCK) * -(-o // ONEDNN_BLOCK)
    apart = (places // threads < 512 or kernel < 64) and (call.batch > 1 or call.groups > 2)
    apart = apart and (_use(work, threads) >= _use(inner, threads) or made * c * o // threads < 1 << 16)
    bytes_ = 4 * o * kernel * places * (threads if apart else 1)
    limit = min(COLUMNS_LIMIT, 60 * threads * (call.inputs + call.outputs))
    return bytes_ if bytes_ <= limit else limit // 10


def _use(work: int, threads: int) -> float:
    """The part of so many threads that this much work keeps busy."""
    return work / (-(-work // threads) * threads)


def _after(geometry: Geometry, wide: dtypes.DType, last: bool) -> int:
    """The result activated, turned round, and rounded."""
    op = geometry.operation
    outputs = prod(geometry.canonical_output) * wide.itemsize
    turned = op.layout == "channels_last" and geometry.out_channels > 1 and not last
    activated = {"none": 0, "softplus": 2}.get(op.activation, 1)
    copies = max(activated, min(activated, 1) + turned)
    return outputs + max(copies * outputs, geometry.output_bytes if wide.name != op.output_dtype else 0)
