"""What errors hold: they refer to the frames that they have passed, and those to tensors."""

from __future__ import annotations

from traceback import clear_frames
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def forget(error: BaseException) -> None:
    """Lets go of what the frames hold that an error has passed, which may be tensors: it refers to them, they often to
    it, and a collection may be long in coming.
    """
    for each in _with_origins(error):
        clear_frames(each.__traceback__)


def drop_tracebacks(error: BaseException) -> None:
    """Lets go of the frames themselves that an error has passed, once nobody wants to know where it came from: though
    they be cleared, each has the function that it ran, and that has its closure.
    """
    for each in _with_origins(error):
        each.__traceback__ = None


def _with_origins(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that it comes from, each once."""
    met = set[int]()
    to_do: list[BaseException | None] = [error]
    while to_do:
        each = to_do.pop()
        if each is not None and id(each) not in met:
            met.add(id(each))
            yield each
            to_do += [each.__cause__, each.__context__]
