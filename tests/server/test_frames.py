"""Errors let go of what the frames hold that they have passed, and with it of tensors."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, NoReturn

import pytest

from convolver.server.frames import drop_tracebacks, forget
from convolver.server.outcomes import outcome_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Array:
    """Something that a frame holds."""


HELD: list[weakref.ref[Array]] = []


def fail() -> NoReturn:
    array = Array()
    HELD.append(weakref.ref(array))
    raise SystemExit(3)


def with_a_cause() -> NoReturn:
    try:
        fail()
    except SystemExit as error:
        raise RuntimeError from error


def with_a_context() -> NoReturn:
    try:
        fail()
    except SystemExit:
        raise RuntimeError  # noqa: B904 - for its context


def with_another_cause() -> NoReturn:
    try:
        fail()
    except SystemExit:
        raise RuntimeError from ValueError()


@pytest.fixture(autouse=True)
def _without_collections() -> Iterator[None]:
    """Which would let go of them too, some time."""
    HELD.clear()
    gc.disable()
    yield
    gc.enable()


def caught(raises: Callable[[], NoReturn]) -> BaseException:
    """What it raises; pytest.raises would keep the traceback."""
    try:
        raises()
    except (RuntimeError, SystemExit) as error:
        return error


@pytest.mark.parametrize("raises", [fail, with_a_cause, with_a_context, with_another_cause])
@pytest.mark.parametrize("let_go", [forget, drop_tracebacks])
def test_an_error_and_those_it_comes_from_hold_nothing_then(
    raises: Callable[[], NoReturn], let_go: Callable[[BaseException], None]
) -> None:
    error = caught(raises)
    assert HELD[0]() is not None
    let_go(error)
    assert HELD[0]() is None


def test_what_work_raises_that_is_no_exception_is_the_cause_of_one() -> None:
    _, error = outcome_of(fail)
    assert isinstance(error, RuntimeError)
    assert isinstance(error.__cause__, SystemExit)
    drop_tracebacks(error)
    assert error.__cause__.__traceback__ is None
    assert HELD[0]() is None


def test_errors_that_come_from_one_another_end() -> None:
    one, other = caught(fail), caught(with_a_cause)
    one.__cause__, other.__cause__ = other, one
    drop_tracebacks(one)
    assert (one.__traceback__, other.__traceback__) == (None, None)
