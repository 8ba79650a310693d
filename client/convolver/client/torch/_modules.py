"""torch.nn's convolutions with their computation in the service: constructors, parameters and state are torch's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict, cast

from torch import nn
from torch.nn.modules.conv import _ConvNd

from convolver.client.torch._autograd import convolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from typing_extensions import Unpack

    from convolver.client import Client
    from convolver.core.parameters import Padding, PaddingMode, Sizes


class LayerParameters(TypedDict, total=False):
    """In what the two kinds of layers differ."""

    padding_mode: PaddingMode
    transposed: bool
    output_padding: Sizes
    output_size: Sizes


class ClientReference:
    """A module's client, which a copy of the module shares and a pickle leaves behind: a connection does not travel."""

    def __init__(self, client: Client | None = None) -> None:
        self.client = client

    def __deepcopy__(self, _memo: dict[int, Any]) -> ClientReference:
        return self

    def __reduce__(self) -> tuple[type[ClientReference], tuple[()]]:
        return ClientReference, ()


class Remote(_ConvNd):
    """A convolution of torch.nn with a client, which may be set at any time; None is this process's own.

    A copy has the same client; an unpickled module has None until it is given one.
    """

    _reference: ClientReference

    def __init__(self, *args: Any, client: Client | None = None, **kwargs: Any) -> None:  # noqa: ANN401 - torch's own
        super().__init__(*args, **kwargs)
        self.client = client

    @property
    def client(self) -> Client | None:
        """Who computes."""
        return self._reference.client

    @client.setter
    def client(self, client: Client | None) -> None:
        self._reference = ClientReference(client)

    def forward(self, input: Tensor) -> Tensor:
        """The output, as torch's own forward; one call to the service, and one more backward."""
        return self._convolved(input, padding_mode=self.padding_mode)

    def _convolved(self, input: Tensor, **parameters: Unpack[LayerParameters]) -> Tensor:
        return convolved(
            len(self.kernel_size),
            (input, self.weight, self.bias),
            self.client,
            stride=self.stride,
            padding=cast("Padding", self.padding),  # the constructor has checked the word
            dilation=self.dilation,
            groups=self.groups,
            **parameters,
        )


class RemoteTransposed(Remote):
    """A transposed convolution of torch.nn with a client."""

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """The output, as torch's own forward; `output_size` is that of the spatial dimensions, or of all."""
        if output_size is None:
            return self._convolved(input, transposed=True, output_padding=self.output_padding)
        sizes = output_size[-len(self.kernel_size) :] if len(output_size) == input.dim() else output_size
        return self._convolved(input, transposed=True, output_size=tuple(sizes))


class RemoteConv1d(Remote, nn.Conv1d):
    """torch.nn.Conv1d, computed by the service of `client`."""


class RemoteConv2d(Remote, nn.Conv2d):
    """torch.nn.Conv2d, computed by the service of `client`."""


class RemoteConv3d(Remote, nn.Conv3d):
    """torch.nn.Conv3d, computed by the service of `client`."""


class RemoteConvTranspose1d(RemoteTransposed, nn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d, computed by the service of `client`."""


class RemoteConvTranspose2d(RemoteTransposed, nn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d, computed by the service of `client`."""


class RemoteConvTranspose3d(RemoteTransposed, nn.ConvTranspose3d):
    """torch.nn.ConvTranspose3d, computed by the service of `client`."""
