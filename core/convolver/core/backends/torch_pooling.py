"""Pooling on torch's tensors, on any device: floats in float32 or wider, since torch lacks narrower ones here and
there; of complex numbers each part. Integers are the reference's (CUDA has none).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit

from convolver.core.backends.torch_sums import compact
from convolver.core.dtypes import DTypeName
from convolver.core.pooling import Pooling

_MAX: dict[int, Callable[..., torch.Tensor]] = {2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE: dict[int, Callable[..., torch.Tensor]] = {
    1: F.adaptive_avg_pool1d,
    2: F.adaptive_avg_pool2d,
    3: F.adaptive_avg_pool3d,
}

_ALONE = (1, 0, 1)
"""Kernel, padding and stride of a dimension that is left as it is."""

LARGEST_DIVISOR = 2**24
"""Elements of a window that each type which torch pools in holds exactly."""

LARGEST_E4M3FN = 464.0
"""What still rounds to 448, the largest that float8_e4m3fn holds."""

NAN_E4M3FN = 0x7F


def pool(pooling: Pooling, x: torch.Tensor) -> torch.Tensor:
    """The output, contiguous, in the layout of x and of `output_dtype`."""
    return rounded(_pooled(pooling, _wide(pooling, x)), pooling.output_dtype)


def pool_gradient(pooling: Pooling, x: torch.Tensor | None, grad: torch.Tensor) -> torch.Tensor:
    """The gradient with respect to x, of the input's dtype, given that with respect to the output; also in inference
    mode. A mean's does not read x.
    """
    if pooling.kind == "average" and pooling.ndim < 3 and not grad.is_complex():
        return rounded(compact(_spread(pooling, _wide(pooling, grad))), pooling.dtype)
    return rounded(compact(_by_autograd(pooling, x, grad)), pooling.dtype)


def _by_autograd(pooling: Pooling, x: torch.Tensor | None, grad: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(mode=False), torch.enable_grad():
        wide = _wide(pooling, grad.new_zeros(pooling.input_shape) if x is None else x)
        leaf = (wide.clone() if wide.is_inference() else wide.detach()).requires_grad_()
        [gradient] = torch.autograd.grad(_pooled(pooling, leaf), leaf, _wide(pooling, grad))
    return gradient


def _spread(pooling: Pooling, grad: torch.Tensor) -> torch.Tensor:
    """A mean's gradient in one or two dimensions, by torch's own, which computes no mean before."""
    batched = grad if pooling.batched else grad[None]
    canonical = batched if pooling.layout == "channels_first" else batched.movedim(-1, 1)
    window = [*zip(*trimmed(pooling), pooling.stride, strict=True)]
    divisor = prod(pooling.kernel)
    if pooling.ndim == 1:
        canonical, window = canonical.unsqueeze(2), [_ALONE, *window]
    kernel, padding, stride = zip(*window, strict=True)
    shape = (*canonical.shape[:2], *(1,) * (2 - pooling.ndim), *pooling.input_size)
    shape_alone = canonical.new_empty(1).expand(shape)
    named = {"ceil_mode": False, "count_include_pad": True, "divisor_override": divisor}
    spread: torch.Tensor = torch.ops.aten.avg_pool2d_backward(
        canonical.contiguous(), shape_alone, kernel, stride, padding, **named
    )
    spread = spread.squeeze(2) if pooling.ndim == 1 else spread
    spread = spread if pooling.layout == "channels_first" else spread.movedim(1, -1)
    return spread if pooling.batched else spread[0]


def rounded(y: torch.Tensor, dtype: DTypeName) -> torch.Tensor:
    """Y in that type, rounded once as ml_dtypes does it: torch makes 448 of what float8_e4m3fn cannot hold."""
    narrow = y.to(getattr(torch, dtype))
    if dtype == "float8_e4m3fn" and narrow is not y:
        beyond = (y > LARGEST_E4M3FN).logical_or_(y < -LARGEST_E4M3FN)
        narrow.view(torch.uint8).masked_fill_(beyond, NAN_E4M3FN)
    return narrow


def _wide(pooling: Pooling, x: torch.Tensor) -> torch.Tensor:
    return x.to(getattr(torch, pooling.accumulator.name))


def _pooled(pooling: Pooling, x: torch.Tensor) -> torch.Tensor:
    """In the layout of x."""
    batched = x if pooling.batched else x[None]
    canonical = batched if pooling.layout == "channels_first" else batched.movedim(-1, 1)
    parts = (canonical.real, canonical.imag) if x.is_complex() else (canonical,)
    pooled = [_real(pooling, part) for part in parts]
    y = torch.complex(*pooled) if x.is_complex() else pooled[0]
    y = y if pooling.layout == "channels_first" else y.movedim(1, -1)
    return compact(y if pooling.batched else y[0])


def _real(pooling: Pooling, x: torch.Tensor) -> torch.Tensor:
    """(N, C, *S) to (N, C, *output_size). One dimension is pooled as two, as torch does it."""
    if pooling.kind == "average":
        elements = prod(pooling.kernel)
        if elements > LARGEST_DIVISOR:
            return _averaged(pooling, x, 1) / float(elements)
        return _averaged(pooling, x, elements)
    if pooling.kind == "adaptive_average":
        return _ADAPTIVE[pooling.ndim](x, pooling.output_size)
    window = [*zip(*trimmed(pooling), pooling.stride, pooling.dilation, strict=True)]
    if pooling.ndim == 1:
        x, window = x.unsqueeze(2), [(1, 0, 1, 1), *window]
    if pooling.ndim == 3:  # torch 2.13 forgets the depth of windows of -inf alone where strides say channels last
        x = x.flatten().reshape(x.shape)
    kernel, padding, stride, dilation = zip(*window, strict=True)
    y = _MAX[x.ndim - 2](x, kernel, stride, padding, dilation)
    return y.squeeze(2) if pooling.ndim == 1 else y


def _averaged(pooling: Pooling, x: torch.Tensor, divisor: int) -> torch.Tensor:
    """The windows' sums, divided; of three dimensions first along the last two: torch's avg_pool3d refuses windows
    larger than the input before it is padded.
    """
    window = [*zip(*trimmed(pooling), pooling.stride, strict=True)]
    if pooling.ndim == 1:
        return _planes(x.unsqueeze(2), divisor, _ALONE, window[0]).squeeze(2)
    if pooling.ndim == 2:
        return _planes(x, divisor, *window)
    planes = _planes(x.flatten(1, 2), 1, *window[1:])
    columns = planes.reshape(*x.shape[:3], prod(pooling.output_size[1:]))
    return _planes(columns, divisor, window[0], _ALONE).reshape(*x.shape[:2], *pooling.output_size)


def _planes(x: torch.Tensor, divisor: int, *window: tuple[int, int, int]) -> torch.Tensor:
    kernel, padding, stride = zip(*window, strict=True)
    return F.avg_pool2d(x, kernel, stride, padding, divisor_override=divisor)


def trimmed(pooling: Pooling) -> tuple[list[int], list[int]]:
    """Kernel and padding without the elements at both ends that are padding in every window: torch walks over them one
    by one, and its products of the kernel's sizes have 64 bits.
    """
    kernels, paddings = [], []
    for d, (size, outputs) in enumerate(zip(pooling.input_size, pooling.output_size, strict=True)):
        kernel, padding, dilation = pooling.kernel[d], pooling.padding[d], pooling.dilation[d]
        before = (padding - (outputs - 1) * pooling.stride[d]) // dilation
        behind = kernel - -(-(padding + size) // dilation)
        cut = max(0, min(before, behind))
        kernels.append(kernel - 2 * cut)
        paddings.append(padding - cut * dilation)
    return kernels, paddings
