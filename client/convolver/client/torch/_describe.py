"""Networks of torch.nn as stacks: lists of layers that `Client.stack` takes."""

from __future__ import annotations

from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, cast

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.lazy import LazyModuleMixin

from convolver.client._stack_layers import Conv, Pool
from convolver.client.torch import _described_modules as described
from convolver.core import dtypes
from convolver.core.errors import InvalidConvolution
from convolver.core.operation import Tensor
from convolver.core.stack import ConvolutionLayer, parse_stack

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from convolver.core.parameters import LayerParameters, Parameters
    from convolver.core.stack import Layer


def describe(module: nn.Module, input_shape: Sequence[int] | None = None) -> list[Conv | Pool]:
    """The layers of a network in eval mode: a Sequential, of others too, of convolutions (torch.nn's or ours), pooling
    and what merges into the convolution before it, which is one batch norm and then one activation. The weights are the
    module's own tensors, but where a batch norm is folded into them.

    `input_shape` (N, C, *S) is needed for Flatten with Linear behind it: the Linear becomes a convolution whose kernel
    spans the map, those after it convolutions of a 1x1 map. The stack then ends with (N, O, 1, 1) in place of (N, O).

    Dropout and Identity are left out. Between a convolution and its activation nothing is rounded, where torch rounds
    narrow types; Softplus is not cut off at torch's threshold, which changes it by at most 2.1e-9.

    Raises InvalidConvolution naming the module's path and class for all that a stack cannot do as torch does it.
    """
    if not isinstance(module, nn.Module):
        raise InvalidConvolution(f"module is a {type(module).__name__}; it must be a torch.nn.Module", "module")
    description = _Description(input_shape)
    description.add("", module)
    if description.flat == "map":
        raise InvalidConvolution("a Flatten at the end has no counterpart; leave it out and reshape the output")
    return description.layers


class _Description:
    """The layers so far. `flat` is "map" behind a Flatten, "vector" behind the first Linear."""

    def __init__(self, input_shape: Sequence[int] | None) -> None:
        self.layers: list[Conv | Pool] = []
        self.flat = ""
        self._input_shape = None if input_shape is None else tuple(input_shape)
        self._ndim = 0
        self._takes: tuple[str, ...] = ()  # what may still merge into the last layer

    def add(self, path: str, module: nn.Module) -> None:
        """A module, or all of a Sequential; a module that is there twice is twice a layer."""
        with _naming(path, module):
            if isinstance(module, LazyModuleMixin):
                raise InvalidConvolution("it has no weight yet; run the network once before")
            if module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001 - torch has no other way to ask
                raise InvalidConvolution("it has hooks, which a stack would not call")
            if not _is_sequential(module):
                self._add(module)
                return
        for name, child in module._modules.items():  # noqa: SLF001 - named_children leaves out repeated ones
            self.add(f"{path}.{name}" if path else name, cast("nn.Module", child))

    def _add(self, module: nn.Module) -> None:
        word = described.activation(module)
        if word:
            self._merge("activation")
            last = cast("Conv", self.layers[-1])
            parameters: LayerParameters = {**last.parameters, "activation": word}
            self.layers[-1] = Conv(last.weight, last.bias, **parameters)
        elif isinstance(module, _BatchNorm) and described.dimensions(module):
            self._merge("batch norm")
            self._check_dimensions(module)
            self.layers[-1] = described.folded(cast("Conv", self.layers[-1]), module)
        elif described.dimensions(module):
            self._check_dimensions(module)
            self._append(described.convolution(module) if isinstance(module, _ConvNd) else described.pooling(module))
        elif type(module) is nn.Flatten:
            self._flatten(module)
        elif type(module) is nn.Linear:
            self._linear(module)
        else:
            _leave_out(module)

    def _append(self, layer: Conv | Pool) -> None:
        self.layers.append(layer)
        self._takes = ("batch norm", "activation") if isinstance(layer, Conv) else ()

    def _merge(self, what: str) -> None:
        if what not in self._takes:
            raise InvalidConvolution(f"it must directly follow a convolution, which takes one {what}, activations last")
        self._takes = self._takes[self._takes.index(what) + 1 :]

    def _check_dimensions(self, module: nn.Module) -> None:
        """All layers have the same spatial dimensions; a vector has none, and batch norm's one."""
        ndim = described.dimensions(module)
        if self.flat:
            if self.flat == "map" or not isinstance(module, nn.BatchNorm1d):
                raise InvalidConvolution("behind a Flatten there may be Linear, and what merges into it")
        elif self._ndim not in (0, ndim):
            raise InvalidConvolution(f"it has {ndim} spatial dimensions, but the layers before have {self._ndim}")
        else:
            self._ndim = ndim

    def _flatten(self, module: nn.Flatten) -> None:
        if self.flat or (module.start_dim, module.end_dim) != (1, -1):
            raise InvalidConvolution("it must be the first one, from dimension 1 to the last")
        self.flat, self._takes = "map", ()

    def _linear(self, module: nn.Linear) -> None:
        if not self.flat:
            raise InvalidConvolution("it needs a Flatten before it: alone it would take the last dimension")
        size = self._map_size(module) if self.flat == "map" else (1,) * self._ndim
        self._append(described.linear(module, size))
        self.flat = "vector"

    def _map_size(self, module: nn.Linear) -> tuple[int, ...]:
        """The spatial size of what is flattened."""
        if self._input_shape is None:
            raise InvalidConvolution("its kernel's size is that of the map before it; give input_shape")
        shape, ndim = self._input_shape, self._ndim or len(self._input_shape) - 2
        if len(shape) != ndim + 2 or not 1 <= ndim <= 3:
            raise InvalidConvolution(f"input_shape is {shape}; it must be (N, C, *S), with a batch dimension")
        dtype = dtypes.named(str(module.weight.dtype).removeprefix("torch.")).name
        layers = [_headers(layer) for layer in self.layers]
        _, channels, *size = parse_stack(Tensor(dtype, shape), layers, {})[-1].output.shape if layers else shape
        if module.in_features != channels * prod(size):
            raise InvalidConvolution(f"it takes {module.in_features} features, but the map is {(channels, *size)}")
        self._ndim = ndim
        return tuple(size)


def _is_sequential(module: nn.Module) -> bool:
    """A Sequential, or a subclass with its forward."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _leave_out(module: nn.Module) -> None:
    """Raises InvalidConvolution for all that is not the identity in eval mode."""
    if isinstance(module, _DropoutNd):
        if module.training:
            raise InvalidConvolution("it is in training mode, where its output is random; call .eval()")
    elif type(module) is not nn.Identity:
        raise InvalidConvolution("no layer of a stack does what it does")


def _headers(layer: Conv | Pool) -> Layer:
    if isinstance(layer, Pool):
        return layer.parameters
    dtype, bias = dtypes.named(str(layer.weight.dtype).removeprefix("torch.")).name, layer.bias
    parameters = cast("Parameters", layer.parameters)
    return ConvolutionLayer(
        Tensor(dtype, tuple(layer.weight.shape)), None if bias is None else Tensor(dtype, tuple(bias.shape)), parameters
    )


@contextmanager
def _naming(path: str, module: nn.Module) -> Iterator[None]:
    try:
        yield
    except InvalidConvolution as refusal:
        where = f"{path or 'the module'} ({type(module).__name__})"
        raise InvalidConvolution(f"{where}: {refusal.message}", path) from None
