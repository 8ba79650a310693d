"""Networks made of torch.nn's modules, moved to the service and shared with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from torch import nn

from convolver.client.torch import _modules as remote
from convolver.core.errors import InvalidConvolution

if TYPE_CHECKING:
    from convolver.client import Client

_REMOTE: dict[type[nn.Module], type[remote.Remote]] = {
    nn.Conv1d: remote.RemoteConv1d,
    nn.Conv2d: remote.RemoteConv2d,
    nn.Conv3d: remote.RemoteConv3d,
    nn.ConvTranspose1d: remote.RemoteConvTranspose1d,
    nn.ConvTranspose2d: remote.RemoteConvTranspose2d,
    nn.ConvTranspose3d: remote.RemoteConvTranspose3d,
}
_LAZY = (
    nn.LazyConv1d,
    nn.LazyConv2d,
    nn.LazyConv3d,
    nn.LazyConvTranspose1d,
    nn.LazyConvTranspose2d,
    nn.LazyConvTranspose3d,
)

Network = TypeVar("Network", bound=nn.Module)


def to_remote(module: Network, client: Client | None = None) -> Network:
    """The module itself, with every convolution in it computed by the service of `client`; in place.

    Each convolution stays the object it was, with its parameters, hooks and mode, and only becomes of another class (as
    torch's lazy modules do): optimizers, shared modules and references keep working. Those that are remote already get
    this client. Subclasses of torch.nn's convolutions stay as they are, since their own forward would be lost.

    Raises InvalidConvolution, and changes nothing, where a lazy convolution has not seen its first input: until then it
    has no weight.
    """
    found = dict(module.named_modules())
    for name, each in found.items():
        if isinstance(each, _LAZY):
            raise InvalidConvolution(
                f"{name or 'the module'} is a {type(each).__name__} without a weight; run the network once before", name
            )
    for each in found.values():
        if type(each) in _REMOTE:
            each.__class__ = _REMOTE[type(each)]
        if isinstance(each, remote.Remote):
            each.client = client
    return module
