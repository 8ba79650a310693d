"""The errors that a caller sees beside those of convolver.core.errors: what happened on the way.

ConvolverError
└── TransportError
    ├── ServiceUnavailable   nobody answers at that address, or the connection broke
    ├── DeadlineExceeded     no answer within the timeout
    └── NotAuthorised        the server does not know the caller, or does not let it do this
"""

from __future__ import annotations

from convolver.core.errors import ConvolverError


class TransportError(ConvolverError):
    """The call did not get its answer."""

    reason = "TRANSPORT_ERROR"


class ServiceUnavailable(TransportError, ConnectionError):
    """Nobody answers at that address, or the connection broke."""


class DeadlineExceeded(TransportError, TimeoutError):
    """No answer within the timeout."""


class NotAuthorised(TransportError, PermissionError):
    """The server does not know the caller, or does not let it do this."""
