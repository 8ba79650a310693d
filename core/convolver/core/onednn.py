"""What oneDNN allocates for one float32 convolution that ATen gives it, from integers: its choice of a layout and an
implementation, which decide that.

Read from oneDNN 3.12's sources (src/cpu/cpu_convolution_list.cpp, x64/jit_avx512_common_conv_kernel.cpp,
x64/jit_brgemm_conv_bwd_utils.cpp, gemm_convolution_utils.cpp) and held to what happens by
tests/core/test_plan_memory.py. Widths are those of AVX-512.
"""

from __future__ import annotations

from math import prod
from operator import mod
from typing import NamedTuple

from convolver.core.geometry import extent

BLOCK = 16
"""Channels that it lays out together, which is where the memory for few channels goes."""

LARGEST_PADDING, LARGEST_DEPTHWISE_PADDING = 28, 6
"""What its own kernels take on one side; above it computes by im2col."""

REGISTERS = 31
"""Vector registers that its transposed kernels divide among blocks of channels, and an accumulator more."""

COLUMNS_LIMIT = 1 << 30
"""Bytes of im2col that it allows itself."""


class Call(NamedTuple):
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
    bias: bool
    transposed: bool
    last: bool

    @property
    def inputs(self) -> int:
        """Elements."""
        return self.batch * self.channels * prod(self.size)

    @property
    def outputs(self) -> int:
        """Elements."""
        return self.batch * self.out_channels * prod(self.output)

    @property
    def group(self) -> tuple[int, int]:
        """Channels in and out of one group."""
        return self.channels // self.groups, self.out_channels // self.groups

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is one element, without padding."""
        return all(k == 1 for k in self.kernel) and not any(self.padding)

    @property
    def strided(self) -> bool:
        """Whether in any dimension."""
        return any(s > 1 for s in self.stride)

    @property
    def dilated(self) -> bool:
        """Whether in any dimension."""
        return any(d > 1 for d in self.dilation)

    @property
    def depthwise(self) -> bool:
        """Whether each channel has a group and a result of its own."""
        return self.groups > 1 and self.group == (1, 1)

    @property
    def beside(self) -> bool:
        """Whether a kernel can lie wholly in the padding, or the padding is too much for oneDNN's own kernels."""
        most = LARGEST_DEPTHWISE_PADDING if self.depthwise else LARGEST_PADDING
        pairs = zip(self.padding, map(extent, self.kernel, self.dilation), strict=True)
        return any(p >= e or p > most for p, e in pairs)


def call_bytes(call: Call, threads: int) -> int:
    """Bytes of the result and of what stands beside the input."""
    return _transposed_bytes(call, threads) if call.transposed else _forward_bytes(call)


def blocked(channels: int) -> int:
    """Channels in whole blocks."""
    return -(-channels // BLOCK) * BLOCK


def is_innermost(call: Call) -> bool:
    """Whether it gets channels that are innermost, and leaves them so: ATen turns them round in one dimension."""
    return call.last and (len(call.size) > 1 or call.channels == 1)


def _in_blocks(channels: int, size: int) -> int:
    """Bytes of so many channels in whole blocks."""
    return size * blocked(channels) // channels


def _forward_bytes(call: Call) -> int:
    """Input and output copied to its own layout and back. Few channels take the place of a block, unless they
    are grouped, which it computes in fours or, by im2col, as they are.
    """
    inputs, outputs = 4 * call.inputs, 4 * call.outputs
    if is_innermost(call):
        return outputs
    volume, apart = len(call.size) == 3, call.groups > 1 and not call.depthwise
    if call.beside or (volume and call.depthwise and call.dilated) or (apart and any(n % 4 for n in call.group)):
        columns = 4 * call.group[0] * prod(call.kernel) * prod(call.output[1:]) if volume else 0
        return outputs + max(outputs, columns)
    if apart or (call.depthwise and volume):
        return outputs + max(inputs, outputs)
    first = call.groups == 1 and call.channels < BLOCK and not (call.pointwise and _reads_all(call))
    return _in_blocks(call.out_channels, outputs) + max(0 if first else _in_blocks(call.channels, inputs), outputs)


def _reads_all(call: Call) -> bool:
    """Whether the kernels for 1x1 take the strides: none, or such as divide the size in up to two dimensions."""
    small, large = (call.size, call.output) if call.transposed else (call.output, call.size)
    exact = all(s * n == i for s, n, i in zip(call.stride, small, large, strict=True))
    return not call.strided or (exact and len(call.size) < 3)


def _transposed_bytes(call: Call, threads: int) -> int:
    """The same, transposed. With strides, by matrix products whose results pass through two more arrays, and whose
    input is copied, an item for each thread, where the stride does not divide the output's rows.
    """
    inputs, outputs = 4 * call.inputs, 4 * call.outputs
    bias = outputs if _keeps_bias_apart(call) else 0
    uneven = _is_by_matrices(call) and call.output[-1] % call.stride[-1]
    rows = 4 * min(threads, call.batch) * call.channels * prod(call.size) if uneven else 0
    if is_innermost(call):
        if call.dilated if call.strided else call.beside:
            rows = 4 * call.group[1] * prod(call.kernel) * prod(call.size)
            rows += outputs // (call.batch * call.groups) if call.groups > 1 else 0
        return outputs + bias + rows
    if _is_by_matrices(call):
        return outputs + max(inputs + rows + bias, 2 * outputs)
    if _transposes_by_columns(call):
        return outputs + max(outputs, _transposed_columns(call, threads) + bias)
    if call.groups > 1 and not call.depthwise:
        return outputs + max(inputs + bias, outputs)
    as_blocks = _in_blocks(call.out_channels, outputs)
    return as_blocks + max(_in_blocks(call.channels, inputs) + _in_blocks(call.out_channels, bias), outputs)


def _is_by_matrices(call: Call) -> bool:
    return call.strided and not call.dilated and (call.groups == 1 or call.group[0] > BLOCK // 2)


def _keeps_bias_apart(call: Call) -> bool:
    """Whether a result without bias stands beside that with it (ref_deconvolution.hpp): matrix products add it, unless
    a stride does not divide the output.
    """
    if _is_by_matrices(call):
        return call.bias and any(map(mod, call.output, call.stride))
    return call.bias and not (is_innermost(call) and not (call.strided or call.depthwise or call.beside))


def _transposes_by_columns(call: Call) -> bool:
    """Whether the kernels for blocks of channels refuse it (jit_avx512_common_conv_kernel.cpp)."""
    if call.beside:
        return True
    if call.depthwise:
        return call.dilated or len(call.size) == 3
    if call.groups > 1 and any(n % 4 for n in call.group):
        return True
    if call.strided:
        return not (call.pointwise and _reads_all(call))
    blocks = blocked(call.out_channels) // BLOCK
    together = max(n for n in range(1, 5) if blocks % n == 0)
    registers = REGISTERS - 3 if call.kernel[-1] > 4 else REGISTERS // (together + 1)
    return (call.kernel[-1] - 1) * call.dilation[-1] - call.padding[-1] > registers


def _transposed_columns(call: Call, threads: int) -> int:
    """Bytes of its im2col, of one item, group and plane for each thread (jit_gemm_convolution_utils::init_conf)."""
    (c, o), kernel = call.group, prod(call.kernel)
    if call.pointwise and not call.strided:
        return 0
    places, made = (prod(size[1:] if len(size) == 3 else size) for size in (call.size, call.output))
    work, inner = call.groups * call.batch, -(-made // BLOCK) * -(-o // BLOCK)
    apart = (places // threads < 512 or kernel < 64) and (call.batch > 1 or call.groups > 2)
    apart = apart and (_use(work, threads) >= _use(inner, threads) or made * c * o // threads < 1 << 16)
    bytes_ = 4 * o * kernel * places * (threads if apart else 1)
    limit = min(COLUMNS_LIMIT, 60 * threads * (call.inputs + call.outputs))
    return bytes_ if bytes_ <= limit else limit // 10


def _use(work: int, threads: int) -> float:
    """The part of so many threads that this much work keeps busy."""
    return work / (-(-work // threads) * threads)
