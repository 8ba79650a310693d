"""Which layers that stay are packed for oneDNN, torch's library on the CPU, which packs plain weights at each call.

Two cores, one picture, 3x3, plain and packed: 256 -> 256 channels at 14x14 1.7 and 1.4 ms, 512 -> 512 at 7x7 2.8 and
1.5 ms; 64 -> 64 at 56x56 1.5 and 1.6 ms, since the output comes channels last and has to be turned round.
"""

from __future__ import annotations

from math import prod

from convolver.core.methods import is_linear
from convolver.core.plan import Plan

LEAST_WEIGHTS = 1 << 16
"""Elements of a weight that is worth the packing."""


def packs(plan: Plan) -> bool:
    """Whether packing pays: a plain convolution of pictures with more weights than input and output together. Not under
    `deterministic`, since sums in another order have other last bits than those of a request with its own weights.
    """
    op, geometry = plan.operation, plan.geometry
    if plan.backend != "torch:cpu" or plan.algorithm != "direct" or plan.execution.deterministic:
        return False
    plain = geometry.ndim == 2 and op.groups == op.batch_groups == 1 and not (op.transposed or is_linear(geometry))
    own_padding = op.padding_mode == "zeros" and op.pad_begin == op.pad_end and min(op.pad_begin) >= 0
    weights, moved = prod(op.weight_shape), prod(op.input_shape) + prod(geometry.output_shape)
    pays = weights >= LEAST_WEIGHTS and weights > moved > 0
    return plain and own_padding and max(op.input_dilation) == 1 and op.accumulator.name == "float32" and pays
