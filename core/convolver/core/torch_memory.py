"""What torch allocates for a convolution beside input, weight and output, from integers."""

from __future__ import annotations

from math import prod

from convolver.core import dtypes, methods
from convolver.core.geometry import Geometry, dilated

ONEDNN_BLOCK = 16
"""oneDNN lays channels out in blocks of 16, which is where torch's memory for few channels goes."""


def workspace_bytes(geometry: Geometry) -> int:
    """Blocked copies of input and output; for float64 and complex a whole im2col; the copies that the back end makes
    itself: the dilated input uncropped and the padded one, or the whole of a transposed result.
    """
    op = geometry.operation
    wide = dtypes.accumulator(dtypes.TABLE[op.dtype], dtypes.TABLE[op.output_dtype])
    planes = geometry.batch * geometry.in_channels
    spans = prod(map(dilated, geometry.input_size, op.input_dilation))
    padded = planes * (prod(geometry.input_size) if op.transposed else spans + prod(geometry.padded_size))
    outputs = prod(geometry.canonical_output) + (methods.scatter_elements(geometry) if op.transposed else 0)
    if wide.name != "float32":
        places = geometry.batch * prod(geometry.input_size if op.transposed else geometry.output_size)
        return (
            (padded + outputs + places * geometry.in_channels * prod(geometry.kernel))
            * wide.itemsize
            * (2 if wide.kind == "complex" else 1)
        )
    blocked = _blocked(geometry.out_channels) / geometry.out_channels * outputs
    blocked_input = _blocked(geometry.in_channels) / geometry.in_channels * padded
    return round((2 * padded + blocked_input + blocked + outputs) * wide.itemsize)


def _blocked(channels: int) -> int:
    return -(-channels // ONEDNN_BLOCK) * ONEDNN_BLOCK
