"""The errors of Convolver, the same classes in the server that raises them and in the caller's SDK.

ConvolverError
├── InvalidConvolution   the request contradicts itself or a rule; `field` says where
├── Unsupported          well formed, but no back end that may be used can do it
├── LimitExceeded        it can never fit this server; `limit`, `value` and `setting` say why
├── Overloaded           it does not fit now; `retry_after` seconds may help
├── UnknownLayer         the digest names no layer that this server holds
├── IntegerOverflow      a result does not fit its integer type
└── BackendFailure       the server's fault; `reference` finds it in the server's log
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


def shown(value: object) -> str:
    """A caller's value as messages show it: cut at 80 characters, and not refused as Python refuses to write a number
    of thousands of digits.
    """
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a number of {value.bit_length()} bits"
    try:
        return f"{value!r:.80}"
    except ValueError:
        return f"a {type(value).__name__} of numbers with thousands of digits"


class Attempt(NamedTuple):
    """One try of a call: at which address, how many seconds after the call began it failed, and how."""

    address: str
    seconds: float
    what: str


class ConvolverError(Exception):
    """Base of all. `reason` names the class on the wire (google.rpc.ErrorInfo.reason). `attempts` says what the SDK
    tried, for errors that may be another's at the next try; their text ends with it.
    """

    reason: ClassVar[str] = "CONVOLVER_ERROR"
    attempts: tuple[Attempt, ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        """The message; and what was tried, on the same line."""
        return f"{self.message} ({_told(self.attempts)})" if self.attempts else self.message


class InvalidConvolution(ConvolverError, ValueError):
    """A request that contradicts itself or a rule. `field` is its path: `stride[1]`, `input.shape[0]`,
    `layers[3].weight.shape`.
    """

    reason = "INVALID_CONVOLUTION"

    def __init__(self, message: str, field: str = "") -> None:
        super().__init__(message)
        self.field = field


class Unsupported(ConvolverError):
    """Well formed, but no back end that may be used can do it."""

    reason = "UNSUPPORTED"


class LimitExceeded(ConvolverError):
    """More than this server ever takes. `limit` and `value` are in the unit that `subject` names; `setting` is the flag
    that sets it.
    """

    reason = "LIMIT_EXCEEDED"

    def __init__(self, message: str, subject: str = "", limit: int = 0, value: int = 0, setting: str = "") -> None:
        super().__init__(message)
        self.subject, self.limit, self.value, self.setting = subject, limit, value, setting


class Overloaded(ConvolverError):
    """More than this server takes now. Come again in `retry_after` seconds."""

    reason = "OVERLOADED"

    def __init__(self, message: str, retry_after: float = 0.1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnknownLayer(ConvolverError, KeyError):
    """`digest` names no layer that this server holds."""

    reason = "UNKNOWN_LAYER"

    def __init__(self, message: str, digest: str = "") -> None:
        super().__init__(message)
        self.digest = digest


class IntegerOverflow(ConvolverError, OverflowError):
    """A result does not fit its integer type, and neither saturate nor wrap was asked for."""

    reason = "INTEGER_OVERFLOW"


class BackendFailure(ConvolverError, RuntimeError):
    """The server's fault. `reference` finds the cause in the server's log, since it does not travel."""

    reason = "BACKEND_FAILURE"

    def __init__(self, message: str, reference: str = "") -> None:
        super().__init__(message)
        self.reference = reference


def _told(attempts: tuple[Attempt, ...]) -> str:
    places = {attempt.address for attempt in attempts}
    count = "1 try" if len(attempts) == 1 else f"{len(attempts)} tries"
    each = [
        f"{f'{attempt.address} ' if len(places) > 1 else ''}{attempt.what} after {attempt.seconds:.2f} s"
        for attempt in attempts
    ]
    return f"{count} in {attempts[-1].seconds:.2f} s: {'; '.join(each)}"
