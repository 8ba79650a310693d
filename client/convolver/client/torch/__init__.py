"""torch.nn's convolutions, computed and differentiated by a Convolver service: `functional` with the signatures of
torch.nn.functional, modules that stand in for torch.nn's, and `to_remote`, which moves a whole network over. Each takes
a `client` besides; without one it uses this process's own (CONVOLVER_ADDRESS, or an embedded server). `describe` makes
the layers of a stack of a Sequential. Needs torch.
"""

from __future__ import annotations

from convolver.client.torch import functional
from convolver.client.torch._describe import describe
from convolver.client.torch._modules import (
    RemoteConv1d,
    RemoteConv2d,
    RemoteConv3d,
    RemoteConvTranspose1d,
    RemoteConvTranspose2d,
    RemoteConvTranspose3d,
)
from convolver.client.torch._networks import to_remote

__all__ = [
    "RemoteConv1d",
    "RemoteConv2d",
    "RemoteConv3d",
    "RemoteConvTranspose1d",
    "RemoteConvTranspose2d",
    "RemoteConvTranspose3d",
    "describe",
    "functional",
    "to_remote",
]
