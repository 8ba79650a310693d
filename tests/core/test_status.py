"""Every error as a status, and the same error again at the other end."""

from __future__ import annotations

from typing import Any

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from convolver.core import errors
from convolver.core.errors import ConvolverError, InvalidConvolution, LimitExceeded
from convolver.core.status import from_status, to_status

ERRORS: list[tuple[ConvolverError, int, set[str]]] = [
    (InvalidConvolution("stride is 0", "stride[1]"), code_pb2.INVALID_ARGUMENT, {"ErrorInfo", "BadRequest"}),
    (errors.Unsupported("no FFT"), code_pb2.UNIMPLEMENTED, {"ErrorInfo"}),
    (
        LimitExceeded("too much", "bytes", 2**34, 2**90, "--max-request-bytes"),
        code_pb2.RESOURCE_EXHAUSTED,
        {"ErrorInfo", "QuotaFailure"},
    ),
    (errors.Overloaded("busy", 1.25), code_pb2.RESOURCE_EXHAUSTED, {"ErrorInfo", "RetryInfo"}),
    (errors.UnknownLayer("never heard of it", "sha256:" + "0" * 64), code_pb2.NOT_FOUND, {"ErrorInfo"}),
    (errors.IntegerOverflow("output[0, 0] is 128"), code_pb2.OUT_OF_RANGE, {"ErrorInfo"}),
    (errors.BackendFailure("the server failed", "8f3a"), code_pb2.INTERNAL, {"ErrorInfo"}),
]
NAMES = [type(error).__name__ for error, *_ in ERRORS]
each_error = pytest.mark.parametrize(("error", "code", "details"), ERRORS, ids=NAMES)


def travelled(error: ConvolverError) -> status_pb2.Status:
    return status_pb2.Status.FromString(to_status(error).SerializeToString())


def detail(status: status_pb2.Status, kind: Any) -> Any:  # noqa: ANN401 - a message class, and one of it
    """The one detail of that kind."""
    (packed,) = [d for d in status.details if d.Is(kind.DESCRIPTOR)]
    message = kind()
    packed.Unpack(message)
    return message


def test_every_class_is_in_the_table() -> None:
    assert {type(error) for error, *_ in ERRORS} == set(ConvolverError.__subclasses__()) - {
        cls for cls in ConvolverError.__subclasses__() if cls.__module__ != errors.__name__
    }


@pytest.mark.parametrize("error", [error for error, *_ in ERRORS], ids=NAMES)
def test_an_error_comes_back_as_its_class_with_its_attributes(error: ConvolverError) -> None:
    again = from_status(travelled(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert str(again) == str(error) == error.message


@each_error
def test_code_and_details_are_googles(error: ConvolverError, code: int, details: set[str]) -> None:
    status = travelled(error)
    assert status.code == code
    assert status.message == error.message
    assert {packed.TypeName().removeprefix("google.rpc.") for packed in status.details} == details
    info = detail(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (error.reason, "convolver")


def test_a_bad_request_names_field_and_rule() -> None:
    status = travelled(InvalidConvolution("stride[1] is 0; it must be at least 1", "stride[1]"))
    (violation,) = detail(status, error_details_pb2.BadRequest).field_violations
    assert violation.field == "stride[1]"
    assert violation.description == "stride[1] is 0; it must be at least 1"


def test_a_quota_failure_names_subject_limit_and_setting() -> None:
    status = travelled(LimitExceeded("too much", "multiply-accumulates", 1000, 2000, "--max-work"))
    (violation,) = detail(status, error_details_pb2.QuotaFailure).violations
    assert violation.subject == "multiply-accumulates"
    assert "1000" in violation.description
    assert "--max-work" in violation.description


@pytest.mark.parametrize("seconds", [0.0, 0.1, 2.5, 3600.0])
def test_retry_info_says_when(seconds: float) -> None:
    delay = detail(travelled(errors.Overloaded("busy", seconds)), error_details_pb2.RetryInfo).retry_delay
    assert delay.seconds + delay.nanos / 1e9 == pytest.approx(seconds)


LONG = {
    "ascii": "x" * 100_000,
    "three bytes a character": "件" * 100_000,
    "four": "🙂" * 100_000,
    "a few of four": "🙂" * 600,
    "surrogates": "\ud800" * 100_000,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
@each_error
def test_a_status_stays_below_3_kb_whatever_the_caller_wrote(
    error: ConvolverError, code: int, details: set[str], text: str
) -> None:
    swollen = type(error)(
        text, **{k: text if isinstance(v, str) else v for k, v in vars(error).items() if k != "message"}
    )
    status = travelled(swollen)
    assert status.ByteSize() < 3 * 1024
    assert status.code == code
    assert len(status.details) == len(details)
    again = from_status(status)
    assert type(again) is type(error)
    assert again.message.endswith("...")


def test_short_text_is_not_cut() -> None:
    text = "größer als erlaubt: 件"
    again = from_status(travelled(InvalidConvolution(text, "padding")))
    assert again is not None
    assert again.message == text


class Bytes(int):
    """A number that writes itself with its unit."""

    def __str__(self) -> str:
        return f"{int(self)}B"


def test_a_number_that_writes_itself_in_its_own_way_travels_in_digits() -> None:
    again = from_status(travelled(LimitExceeded("too much", "bytes", Bytes(1000), Bytes(2000))))
    assert isinstance(again, LimitExceeded)
    assert (again.limit, again.value) == (1000, 2000)


FOREIGN: dict[str, status_pb2.Status] = {
    "no details": status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="from a proxy"),
    "another domain": status_pb2.Status(),
    "an unknown reason": status_pb2.Status(),
    "another kind": status_pb2.Status(),
    "numbers that are none": status_pb2.Status(),
}
FOREIGN["numbers that are none"].details.add().Pack(
    error_details_pb2.ErrorInfo(reason="LIMIT_EXCEEDED", domain="convolver", metadata={"limit": "1KB"})
)
for seconds in ("inf", "nan", "-1", "1e300"):
    FOREIGN[f"a pause of {seconds} s"] = status_pb2.Status()
    FOREIGN[f"a pause of {seconds} s"].details.add().Pack(
        error_details_pb2.ErrorInfo(reason="OVERLOADED", domain="convolver", metadata={"retry_after": seconds})
    )
FOREIGN["another domain"].details.add().Pack(error_details_pb2.ErrorInfo(reason="UNSUPPORTED", domain="googleapis.com"))
FOREIGN["an unknown reason"].details.add().Pack(error_details_pb2.ErrorInfo(reason="NEW", domain="convolver"))
FOREIGN["another kind"].details.add().Pack(error_details_pb2.RetryInfo())


@pytest.mark.parametrize("name", FOREIGN)
def test_a_status_of_somebody_else_is_none_of_ours(name: str) -> None:
    assert from_status(FOREIGN[name]) is None


def test_our_detail_is_found_behind_others() -> None:
    status = to_status(errors.Unsupported("no FFT"))
    ours = status.details.pop()
    status.details.add().Pack(error_details_pb2.RetryInfo())
    status.details.append(ours)
    assert isinstance(from_status(status), errors.Unsupported)


def test_errors_are_pythons_own_kinds_as_well() -> None:
    assert isinstance(InvalidConvolution("x"), ValueError)
    assert isinstance(errors.UnknownLayer("x"), KeyError)
    assert isinstance(errors.IntegerOverflow("x"), OverflowError)
    assert isinstance(errors.BackendFailure("x"), RuntimeError)
    assert str(errors.UnknownLayer("no quotes")) == "no quotes"
