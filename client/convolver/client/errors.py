"""The errors that a caller sees beside those of convolver.core.errors: what happened on the way, and in files.

ConvolverError
├── WeightsError             a file of weights cannot be read; `path` and `tensor` say where
└── TransportError
    ├── ServiceUnavailable   nobody answers at that address, or the connection broke
    ├── DeadlineExceeded     no answer within the timeout
    └── NotAuthorised        the server does not know the caller, or does not let it do this
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from convolver.core.errors import ConvolverError, shown

if TYPE_CHECKING:
    from pathlib import Path


class TransportError(ConvolverError):
    """The call did not get its answer."""

    reason = "TRANSPORT_ERROR"


class ServiceUnavailable(TransportError, ConnectionError):
    """Nobody answers at that address, or the connection broke."""


class DeadlineExceeded(TransportError, TimeoutError):
    """No answer within the timeout."""


class NotAuthorised(TransportError, PermissionError):
    """The server does not know the caller, or does not let it do this."""


class WeightsError(ConvolverError, ValueError):
    """A file of weights cannot be read, or one of its tensors. The message starts with `path`; `tensor` is the name,
    empty where the whole file is wrong.
    """

    def __init__(self, path: Path, reason: str, tensor: str = "") -> None:
        where = f"tensor {shown(tensor)}: " if tensor else ""
        super().__init__(f"{path}: {where}{reason}")
        self.path, self.tensor = path, tensor
