"""Single values as callers write them: integers in their bounds, one per dimension, words, flags. Each refusal names
field, rule and value.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import Any, get_args

import numpy as np

from convolver.core.errors import InvalidConvolution, shown
from convolver.core.operation import LARGEST


def number(value: object, field: str, low: int = -LARGEST, high: int = LARGEST) -> int:
    """An integer from low to high.

    Raises InvalidConvolution naming the field, the value and the bound.
    """
    whole = None
    if not isinstance(value, bool):
        with suppress(TypeError):
            whole = operator.index(value)  # type: ignore[arg-type]  # that it may be no integer is what is asked here
    if whole is None:
        raise InvalidConvolution(f"{field} is {shown(value)}; it must be an integer", field)
    if whole < low:
        raise InvalidConvolution(f"{field} is {shown(whole)}; it must be at least {low}", field)
    if whole > high:
        raise InvalidConvolution(
            f"{field} is {shown(whole)}; it must be at most {'2^31-1' if high == LARGEST else high}", field
        )
    return whole


def real(value: object, field: str) -> float:
    """A number as a double. Raises InvalidConvolution for what is no number, and for one that no double is."""
    try:
        double = float(value) if isinstance(value, Real) else None
    except OverflowError:
        double = math.inf
    if double is None:
        raise InvalidConvolution(f"{field} is {shown(value)}; it must be a number", field)
    if double != value and not math.isnan(double):
        raise InvalidConvolution(f"{field} is {shown(value)}, which no double is", field)
    return double


def flag(given: Mapping[str, Any], field: str) -> bool:
    """True or False, by default False. Raises InvalidConvolution for anything else: bool("no") would be True."""
    value = given.get(field, False)
    if not isinstance(value, bool | np.bool_):
        raise InvalidConvolution(f"{field} is {shown(value)}; it must be True or False", field)
    return bool(value)


def per_dimension(value: object, ndim: int, field: str, low: int = -LARGEST) -> tuple[int, ...]:
    """One integer per spatial dimension, from an integer or a sequence of `ndim` of them (or of one, to be spread)."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if len(value) not in (1, ndim):
            raise InvalidConvolution(
                f"{field} has {len(value)} entries; the weight has {ndim} spatial dimensions", field
            )
        entries = tuple(number(v, f"{field}[{i}]", low) for i, v in enumerate(value))
        return entries * ndim if len(entries) != ndim else entries
    return (number(value, field, low),) * ndim


def word(given: Mapping[str, Any], field: str, words: object, default: Any) -> Any:  # noqa: ANN401 - a Literal of the caller's
    """One of a Literal's words. Raises InvalidConvolution listing them."""
    value = given.get(field, default)
    allowed = get_args(words)
    if not isinstance(value, str) or value not in allowed:
        raise InvalidConvolution(f"{field} is {shown(value)}, which is none of {', '.join(allowed)}", field)
    return value


def explicit_padding(value: object, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(begins, ends) from an int, one int per dimension, or one (begin, end) pair per dimension."""
    if (
        isinstance(value, Sequence)
        and value
        and all(isinstance(v, Sequence) and not isinstance(v, str | bytes) for v in value)
    ):
        if len(value) != ndim:
            raise InvalidConvolution(
                f"padding has {len(value)} pairs; the weight has {ndim} spatial dimensions", "padding"
            )
        pairs = [_pair(v, d) for d, v in enumerate(value)]
        return tuple(begin for begin, _ in pairs), tuple(end for _, end in pairs)
    both = per_dimension(value, ndim, "padding")
    return both, both


def _pair(value: Sequence[object], d: int) -> tuple[int, int]:
    if len(value) != 2:
        raise InvalidConvolution(f"padding[{d}] has {len(value)} entries; a pair (begin, end) has 2", f"padding[{d}]")
    return number(value[0], f"padding[{d}][0]"), number(value[1], f"padding[{d}][1]")
