"""torch's gradients of a convolution, on the device that its operands are on."""

from __future__ import annotations

from math import prod

import torch

from convolver.core.adjoint import (
    as_forward,
    copies_elements,
    correlation,
    has_unit_stride,
    input_gradient,
    source_size,
)
from convolver.core.backends import Prepared, last
from convolver.core.backends.reference_gradients import borders, copied_from, given
from convolver.core.backends.torch_sums import canonical_input, convolved, in_layout, padded
from convolver.core.cancellation import checkpoint
from convolver.core.geometry import Geometry, dilated
from convolver.core.gradients import Wanted, outputs
from convolver.core.methods import is_linear
from convolver.core.operation import Operation


def gradients(
    geometry: Geometry, wanted: Wanted, x: torch.Tensor | None, w: torch.Tensor | None, grad_output: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Those wanted of grad_input, grad_weight and grad_bias, in the operation's layout, as x, w and grad_output are; in
    the accumulator's type, for who receives them to round. Only the weight's gradient reads x, and only the input's
    reads w.
    """
    op = geometry.operation
    with torch.no_grad():
        g = canonical_input(op, _wide(op, grad_output))
        if not geometry.output_batch:  # torch refuses some of them
            return {name: g.new_zeros(header.shape) for name, header in outputs(geometry, wanted)}
        grads = _linear(geometry, wanted, x, w, g)
        if wanted.bias:
            checkpoint()
            grads["grad_bias"] = g.sum((0, *range(2, g.ndim)))
        return grads


def _linear(
    geometry: Geometry, wanted: Wanted, x: torch.Tensor | None, w: torch.Tensor | None, g: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The gradients of input and weight, of the canonical g."""
    op, grads = geometry.operation, {}
    if op.transposed and (wanted.input or wanted.weight):
        g = _window(g, tuple(-begin for begin in op.pad_begin), source_size(geometry))
    if wanted.input:
        checkpoint()
        grads["grad_input"] = in_layout(op, _input(geometry, _canonical_weight(op, _wide(op, given(w, "weight"))), g))
    if wanted.weight:
        checkpoint()
        grads["grad_weight"] = weight_in_layout(
            op, _weight(geometry, canonical_input(op, _wide(op, given(x, "input"))), g)
        )
    return grads


def _wide(op: Operation, tensor: torch.Tensor) -> torch.Tensor:
    """In the accumulator's type; of a complex gradient with respect to reals the real part."""
    wide = op.accumulator
    real = tensor.real if tensor.is_complex() and wide.kind == "float" else tensor
    return real.to(getattr(torch, wide.name))


def _canonical_weight(op: Operation, tensor: torch.Tensor) -> torch.Tensor:
    """(O, C/groups, *K), transposed (C, O/groups, *K), turned by 180 degrees for a true convolution."""
    if op.layout == "channels_last":
        tensor = tensor.permute(-1, -2, *range(op.ndim))
    return tensor.flip(tuple(range(2, tensor.ndim))) if op.flip else tensor


def weight_in_layout(op: Operation, canonical: torch.Tensor) -> torch.Tensor:
    """The inverse of _canonical_weight, contiguous."""
    tensor = canonical.flip(tuple(range(2, canonical.ndim))) if op.flip else canonical
    tensor = tensor if op.layout == "channels_first" else tensor.permute(*range(2, tensor.ndim), 1, 0)
    return tensor.contiguous()


def _input(geometry: Geometry, w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """(N, C, *S). By a transposed convolution: torch 2.13's own gradient ends the process on the CPU where strides are
    above 4095 (oneDNN, 64 channels and a kernel of 1), and has no complex numbers.
    """
    op = geometry.operation
    if not prod(op.canonical_input):
        return g.new_empty(op.canonical_input)
    if is_linear(geometry):
        return (g.flatten(1) @ torch.conj_physical(w).flatten(1)).view(op.canonical_input)
    backward = input_gradient(geometry)
    if has_unit_stride(backward.operation) and w.isfinite().all():
        w = _turned(backward.operation.groups, w)
        backward = as_forward(backward)
    grad = convolved(backward, g, Prepared(torch.conj_physical(w), None))
    if op.transposed:
        return grad
    if op.batch_groups > 1:
        split = grad.reshape(grad.shape[0], op.batch_groups, geometry.in_channels, *grad.shape[2:])
        grad = split.transpose(0, 1).flatten(0, 1)
    return _unpadded(geometry, grad)


def _turned(groups: int, w: torch.Tensor) -> torch.Tensor:
    """A weight (O, C/groups, *K) as (C, O/groups, *K), turned by 180 degrees."""
    grouped = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]).transpose(1, 2)
    return grouped.flatten(0, 1).flip(tuple(range(2, w.ndim)))


def _unpadded(geometry: Geometry, grad: torch.Tensor) -> torch.Tensor:
    """The gradient with respect to the input, of that with respect to the padded one, which is written to."""
    op = geometry.operation
    if copies_elements(op):
        for d in range(geometry.ndim):
            grad = _folded(op, grad, d)
        uncropped = tuple(map(dilated, geometry.input_size, op.input_dilation))
        grad = _window(grad, tuple(min(begin, 0) for begin in op.pad_begin), uncropped)
    return grad[last(*(slice(None, None, step) for step in op.input_dilation))]


def _folded(op: Operation, grad: torch.Tensor, d: int) -> torch.Tensor:
    """Without the borders of dimension d, whose elements are added to those that they had been copied from: in an order
    of their own, where CUDA's index_add of repeated positions has none.
    """
    axis, (begin, end) = 2 + d, borders(op, d)
    if not begin + end:
        return grad
    length = grad.shape[axis] - begin - end
    before, inner = grad.narrow(axis, 0, begin), grad.narrow(axis, begin, length)
    after = grad.narrow(axis, begin + length, end)
    targets, table = (torch.from_numpy(each).to(grad.device) for each in copied_from(op, d, inner.shape[axis]))
    nothing = torch.zeros_like(grad.narrow(axis, 0, 1))
    copies = torch.cat((before, after, nothing), axis).index_select(axis, table.flatten())
    rows = copies.reshape(*grad.shape[:axis], *table.shape, *grad.shape[axis + 1 :])
    return inner.index_add_(axis, targets, rows.sum(axis))


def _window(tensor: torch.Tensor, begins: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
    """The positions of `tensor` from `begins` on, `sizes` many; 0 where it has none."""
    if not any(begins) and tensor.shape[2:] == sizes:
        return tensor
    out = tensor.new_zeros(*tensor.shape[:2], *sizes)
    found = tensor[last(*(slice(max(b, 0), max(0, b + size)) for b, size in zip(begins, sizes, strict=True)))]
    firsts = (max(0, -b) for b in begins)
    out[last(*(slice(f, f + n) for f, n in zip(firsts, found.shape[2:], strict=True)))] = found
    return out


def _weight(geometry: Geometry, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """(O, C/groups, *K), transposed (C, O/groups, *K)."""
    op, made = geometry.operation, correlation(geometry)
    if is_linear(geometry):
        return (g.flatten(1).T @ torch.conj_physical(x).flatten(1)).view(made.operation.weight_shape)
    if op.transposed:
        return _correlated(made, g, x, (0,) * geometry.ndim)
    source, padding = padded(geometry, x)
    if op.batch_groups > 1:
        split = source.reshape(op.batch_groups, made.batch, *source.shape[1:])
        source = split.transpose(0, 1).flatten(1, 2)
    return torch.conj_physical(_correlated(made, source, g, padding))


def _correlated(made: Geometry, source: torch.Tensor, rows: torch.Tensor, padding: tuple[int, ...]) -> torch.Tensor:
    """The sum over n and p of conj(rows[n, o, p]) source[n, c, p*stride + k*dilation]; of complex numbers by real ones
    in twice as many items.
    """
    if not source.is_complex():
        return _of_reals(made, source, rows, padding)
    real = _of_reals(made, torch.cat((source.real, source.imag)), torch.cat((rows.real, rows.imag)), padding)
    checkpoint()
    turned = torch.cat((source.imag, source.real))
    imaginary = _of_reals(made, turned, torch.cat((rows.real, -rows.imag)), padding)
    return torch.complex(real, imaginary)


def _of_reals(made: Geometry, source: torch.Tensor, rows: torch.Tensor, padding: tuple[int, ...]) -> torch.Tensor:
    op, none = made.operation, (0,) * made.ndim
    shape_alone = rows.new_empty(1).expand(op.weight_shape)
    grads: tuple[None, torch.Tensor, None] = torch.ops.aten.convolution_backward(
        rows,
        source,
        shape_alone,
        bias_sizes=None,
        stride=op.stride,
        padding=padding,
        dilation=op.dilation,
        transposed=False,
        output_padding=none,
        groups=op.groups,
        output_mask=(False, True, False),
    )
    return grads[1]
