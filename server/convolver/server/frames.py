"""What errors hold: they refer to the frames that they have passed, and those to tensors."""

from __future__ import annotations

from traceback import clear_frames


def forget(error: BaseException) -> None:
    """Lets go of what the frames hold that an error has passed, which may be tensors: it refers to them, they often to
    it, and a collection may be long in coming.
    """
    passed: BaseException | None = error
    while passed:
        clear_frames(passed.__traceback__)
        passed = passed.__context__


def drop_tracebacks(error: BaseException) -> None:
    """Lets go of the frames themselves that an error has passed, once nobody wants to know where it came from: though
    they be cleared, each has the function that it ran, and that has its closure.
    """
    passed: BaseException | None = error
    while passed:
        passed.__traceback__ = None
        passed = passed.__context__
