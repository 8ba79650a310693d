"""Errors as google.rpc.Status and back: one table for the server that sends them, the streams that carry them and the
SDK that raises them again. A status with its details stays below 3 KB, since gRPC sends its text twice in headers of 8
KiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

from google.protobuf import duration_pb2, message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from convolver.core import errors
from convolver.core.errors import ConvolverError

DOMAIN = "convolver"
LONGEST_TEXT = 600
LONGEST_FIELD = 200
"""In bytes of UTF-8."""

LONGEST_RETRY = 1e9
"""In seconds: thirty years, which every clock can still add to now."""

_CODES: dict[type[ConvolverError], int] = {
    errors.InvalidConvolution: code_pb2.INVALID_ARGUMENT,
    errors.Unsupported: code_pb2.UNIMPLEMENTED,
    errors.LimitExceeded: code_pb2.RESOURCE_EXHAUSTED,
    errors.Overloaded: code_pb2.RESOURCE_EXHAUSTED,
    errors.UnknownLayer: code_pb2.NOT_FOUND,
    errors.IntegerOverflow: code_pb2.OUT_OF_RANGE,
    errors.BackendFailure: code_pb2.INTERNAL,
}

_Metadata = dict[str, str]

_REBUILT: dict[str, Callable[[str, _Metadata], ConvolverError]] = {
    errors.InvalidConvolution.reason: lambda text, m: errors.InvalidConvolution(text, m.get("field", "")),
    errors.Unsupported.reason: lambda text, _: errors.Unsupported(text),
    errors.LimitExceeded.reason: lambda text, m: errors.LimitExceeded(
        text, m.get("subject", ""), int(m.get("limit", "0")), int(m.get("value", "0")), m.get("setting", "")
    ),
    errors.Overloaded.reason: lambda text, m: errors.Overloaded(text, _seconds(m.get("retry_after", "0.1"))),
    errors.UnknownLayer.reason: lambda text, m: errors.UnknownLayer(text, m.get("digest", "")),
    errors.IntegerOverflow.reason: lambda text, _: errors.IntegerOverflow(text),
    errors.BackendFailure.reason: lambda text, m: errors.BackendFailure(text, m.get("reference", "")),
}


def to_status(error: ConvolverError) -> status_pb2.Status:
    """The status of an error: its code, its text, ErrorInfo with the class's reason, and what its class adds."""
    status = status_pb2.Status(code=_CODES[type(error)], message=_cut(error.message, LONGEST_TEXT))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=_metadata(error))
    for detail in (info, *_details(error)):
        status.details.add().Pack(detail)
    return status


def from_status(status: status_pb2.Status) -> ConvolverError | None:
    """The error of a status, None where it is not one of ours (or its numbers are none)."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == DOMAIN and info.reason in _REBUILT:
            with suppress(ValueError):
                return _REBUILT[info.reason](status.message, dict(info.metadata))
    return None


def _seconds(text: str) -> float:
    """Raises ValueError for what nobody can wait for, infinity and NaN among it."""
    seconds = float(text)
    if not 0 <= seconds <= LONGEST_RETRY:
        raise ValueError(f"retry_after is {seconds} s")
    return seconds


def _metadata(error: ConvolverError) -> _Metadata:
    """The error's own attributes, as text; a kind of integer that writes itself in its own way as digits."""
    texts = {name: f"{value:d}" if isinstance(value, int) else str(value) for name, value in vars(error).items()}
    return {name: _cut(text, LONGEST_FIELD) for name, text in texts.items() if name != "message"}


def _details(error: ConvolverError) -> Iterable[message.Message]:
    text = _cut(error.message, LONGEST_TEXT)
    if isinstance(error, errors.InvalidConvolution):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=_cut(error.field, LONGEST_FIELD), description=text
        )
        yield error_details_pb2.BadRequest(field_violations=[violation])
    if isinstance(error, errors.LimitExceeded):
        quota = error_details_pb2.QuotaFailure.Violation(
            subject=_cut(error.subject, LONGEST_FIELD),
            description=_cut(f"limit {error.limit}, set by {error.setting}", LONGEST_FIELD),
        )
        yield error_details_pb2.QuotaFailure(violations=[quota])
    if isinstance(error, errors.Overloaded):
        nanos = round(error.retry_after * 1e9)
        yield error_details_pb2.RetryInfo(
            retry_delay=duration_pb2.Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)
        )


def _cut(text: str, longest: int) -> str:
    data = text.encode("utf-8", "replace")  # a lone surrogate cannot travel
    return data.decode() if len(data) <= longest else f"{data[: longest - 3].decode('utf-8', 'ignore')}..."
