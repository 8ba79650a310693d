"""Single modules of torch.nn as layers of a stack. Raise InvalidConvolution, without the module's path, where a module
does what no layer does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from convolver.client._stack_layers import Conv, Pool
from convolver.client.torch import _modules as remote
from convolver.core.errors import InvalidConvolution, shown

if TYPE_CHECKING:
    from convolver.core.parameters import Activation

    _Words = list[tuple[Activation, dict[str, object]]]

CONVOLUTIONS = (
    (nn.Conv1d, nn.Conv2d, nn.Conv3d),
    (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    (remote.RemoteConv1d, remote.RemoteConv2d, remote.RemoteConv3d),
    (remote.RemoteConvTranspose1d, remote.RemoteConvTranspose2d, remote.RemoteConvTranspose3d),
)
POOLINGS = (
    (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
BATCH_NORMS = ((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),)

_ACTIVATIONS: dict[type[nn.Module], _Words] = {
    nn.ReLU: [("relu", {})],
    nn.ReLU6: [("relu6", {})],
    nn.LeakyReLU: [("leaky_relu", {"negative_slope": 0.01})],
    nn.ELU: [("elu", {"alpha": 1.0})],
    nn.GELU: [("gelu", {"approximate": "none"}), ("gelu_tanh", {"approximate": "tanh"})],
    nn.SiLU: [("silu", {})],
    nn.Sigmoid: [("sigmoid", {})],
    nn.Tanh: [("tanh", {})],
    # torch's is the identity above its threshold. At 20 that is e^-20 = 2.1e-9 less, which float32 does not hold.
    nn.Softplus: [("softplus", {"beta": 1.0, "threshold": 20.0})],
    nn.Hardswish: [("hardswish", {})],
}


def dimensions(module: nn.Module) -> int:
    """Spatial dimensions of a convolution, a pooling or a batch norm (BatchNorm1d takes vectors too); else 0."""
    rows = (*CONVOLUTIONS, *POOLINGS, *BATCH_NORMS)
    return next((row.index(type(module)) + 1 for row in rows if type(module) in row), 0)


def convolution(module: _ConvNd) -> Conv:
    """A convolution with the module's own weight and bias."""
    transposed = {"transposed": True, "output_padding": module.output_padding} if module.transposed else {}
    parameters: dict[str, Any] = {
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
        "padding_mode": module.padding_mode,
        **transposed,
    }
    return Conv(module.weight, module.bias, **parameters)


def linear(module: nn.Linear, size: tuple[int, ...]) -> Conv:
    """A linear layer over a flattened (C, *size) as the convolution whose kernel spans all of it; a view."""
    return Conv(module.weight.detach().reshape(module.out_features, -1, *size), module.bias)


def pooling(module: nn.Module) -> Pool:
    """A pooling, with an entry for each spatial dimension."""
    own, ndim = cast("Any", module), dimensions(module)
    if type(module) in POOLINGS[2]:
        sizes = _spread(own.output_size, ndim)
        if None in sizes:
            raise InvalidConvolution(f"output_size is {own.output_size}; it must be numbers")
        return Pool("adaptive_average", output_size=sizes)
    for name, allowed in (
        ("ceil_mode", False),
        ("return_indices", False),
        ("count_include_pad", True),
        ("divisor_override", None),
    ):
        if getattr(own, name, allowed) != allowed:
            raise InvalidConvolution(f"{name} is {getattr(own, name)}; it must be {allowed}")
    sizes, stride, padding = (_spread(each, ndim) for each in (own.kernel_size, own.stride, own.padding))
    if type(module) in POOLINGS[0]:
        return Pool("max", sizes, stride=stride, padding=padding, dilation=_spread(own.dilation, ndim))
    return Pool("average", sizes, stride=stride, padding=padding)


def _spread(value: Any, ndim: int) -> tuple[Any, ...]:  # noqa: ANN401 - an int, None or a tuple of these
    return tuple(value) if isinstance(value, tuple | list) else (value,) * ndim


def activation(module: nn.Module) -> Activation | None:
    """The module's word; None where it is no activation."""
    words = _ACTIVATIONS.get(type(module))
    if words is None:
        return None
    for word, required in words:
        if all(getattr(module, name) == value for name, value in required.items()):
            return word
    told = ", ".join(f"{name}={shown(getattr(module, name))}" for name in words[0][1])
    allowed = " or ".join(", ".join(f"{name}={value!r}" for name, value in each.items()) for _, each in words)
    raise InvalidConvolution(f"it has {told}; there is {allowed} alone")


def folded(layer: Conv, norm: _BatchNorm) -> Conv:
    """The convolution with a batch norm in eval mode behind it, as one: per output channel
    scale = gamma / sqrt(running_var + eps), weight' = scale weight, bias' = scale (bias - running_mean) + beta, in
    float64 (complex128), then cast to the weight's dtype by torch.
    """
    if norm.training:
        raise InvalidConvolution("it is in training mode, where its output depends on the batch; call .eval()")
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise InvalidConvolution("it has no running statistics, so its output depends on the batch")
    weight: Tensor = layer.weight.detach()
    groups = layer.parameters.get("groups", 1) if layer.parameters.get("transposed") else 0
    channels = weight.shape[1] * groups if groups else weight.shape[0]
    if channels != norm.num_features:
        raise InvalidConvolution(f"it has {norm.num_features} features, but the layer before has {channels} channels")
    gamma, beta = cast("Tensor | None", norm.weight), cast("Tensor | None", norm.bias)
    with torch.no_grad():
        scale = (1.0 if gamma is None else gamma.double()) / (variance.double() + norm.eps).sqrt()
        wide = torch.complex128 if weight.is_complex() else torch.float64
        bias = (0.0 if layer.bias is None else layer.bias.to(wide)) - mean.double()
        shifted = scale * bias + (0.0 if beta is None else beta.double())
        scaled = _scaled(weight.to(wide), scale, groups)
        return Conv(scaled.to(weight.dtype), shifted.to(weight.dtype), **layer.parameters)


def _scaled(weight: Tensor, scale: Tensor, groups: int) -> Tensor:
    """Weights (O, C/groups, *K), or with groups those of a transposed convolution, (C, O/groups, *K)."""
    ones = (1,) * (weight.dim() - 2)
    if not groups:
        return weight * scale.reshape(-1, 1, *ones)
    by_group = weight.reshape(groups, -1, *weight.shape[1:]) * scale.reshape(groups, 1, -1, *ones)
    return by_group.reshape(weight.shape)
