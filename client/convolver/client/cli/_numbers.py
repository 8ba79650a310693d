"""Shapes, paddings and sizes as the command line takes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from convolver.core.parameters import Padding, Sizes

WORDS = ("valid", "same", "same_lower", "full", "causal")


def shape(text: str, option: str) -> tuple[int, ...]:
    """`1,3,224,224` or `1x3x224x224`. Raises BadParameter, naming the option, for anything else."""
    return tuple(_integer(part, text, option) for part in re.split("[,x]", text))


def sizes(text: str, option: str) -> Sizes:
    """`2` for every dimension, or one number for each: `2,1`. Raises BadParameter as `shape` does."""
    numbers = shape(text, option)
    return numbers[0] if len(numbers) == 1 else numbers


def padding(text: str, option: str) -> Padding:
    """A word, `3`, `1,2`, or begin:end for each dimension: `0:1,2:2`. Raises BadParameter as `shape` does."""
    if text in WORDS:
        return text  # type: ignore[return-value]  # mypy does not narrow a str by membership
    if ":" not in text:
        return sizes(text, option)
    return [_pair(part, text, option) for part in text.split(",")]


def _pair(part: str, text: str, option: str) -> tuple[int, int]:
    begin, _, end = part.partition(":")
    return _integer(begin, text, option), _integer(end or begin, text, option)


def _integer(part: str, text: str, option: str) -> int:
    try:
        return int(part)
    except ValueError as error:
        examples = (
            "3, 1,2, 0:1,2:2 or a word such as same" if option == "--padding" else "2, 1,3,224,224 or 1x3x224x224"
        )
        raise typer.BadParameter(f"{text!r:.80} is not numbers; write {examples}", param_hint=f"'{option}'") from error
