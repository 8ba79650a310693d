"""Kernels as a user writes them: a name, rows of numbers, JSON, or a file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from convolver.client.pictures._arrays import read_array
from convolver.client.pictures._kernels import Kernel
from convolver.client.pictures.errors import KernelError, PictureError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from convolver.client.pictures._choices import SpatialDimensions


def parse_kernel(text: str, ndim: SpatialDimensions = 2) -> Kernel:
    """Understand a kernel's name (`gaussian:sigma=2`), its rows (`1 0 -1; 2 0 -2`) or its JSON (`[[1, 0], [0, -1]]`).

    Args:
        text: What starts with a letter is a name, with a bracket JSON, and all else rows.
        ndim: Spatial dimensions of a named kernel; numbers have their own.

    Raises:
        KernelError: The text is none of these.
    """
    text = text.strip()
    if text[:1].isalpha():
        return Kernel.named(text, ndim)
    return Kernel.from_array(_from_json(text, "the kernel") if text.startswith("[") else _from_rows(text), "the kernel")


def read_kernel(path: Path) -> Kernel:
    """Read a kernel from a `.npy` or `.json` file.

    Raises:
        KernelError: The file is missing, is of another kind, or holds no kernel.
    """
    try:
        array = read_array(path) if path.suffix.lower() == ".npy" else _from_json(path.read_text("utf-8"), str(path))
    except PictureError as error:
        raise KernelError(error.message) from error
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise KernelError(f"{path} is not JSON: {error}") from error
    return Kernel.from_array(array, str(path))


def _from_rows(text: str) -> NDArray[np.float64]:
    words = [row.replace(",", " ").split() for row in text.replace("\n", ";").split(";")]
    rows = [[_word(word) for word in row] for row in words if row]
    if not rows:
        raise KernelError("the kernel is empty; write a name, or rows such as '1 0 -1; 2 0 -2; 1 0 -1'")
    return np.array(_numbers(rows, "the kernel"))


def _from_json(text: str, name: str) -> NDArray[np.float64]:
    def refuse(word: str) -> NoReturn:
        raise KernelError(f"{name} holds {word}; a kernel needs finite numbers")

    try:
        nested = json.loads(text, parse_constant=refuse)
        return np.array(_numbers(nested, name), np.float64)
    except (json.JSONDecodeError, RecursionError) as error:
        raise KernelError(f"{name} is not JSON: {error}") from error


def _numbers(nested: object, name: str) -> Any:  # noqa: ANN401  # floats in lists in lists: a recursive type says no more
    """The same nesting, all of it even and all of it floats."""
    if not isinstance(nested, list):
        return _number(nested, name)
    items = [_numbers(item, name) for item in nested]
    _check_even([np.shape(item) for item in items], name)
    return items


def _check_even(shapes: Sequence[tuple[int, ...]], name: str) -> None:
    for index, shape in enumerate(shapes):
        if shape != shapes[0]:
            raise KernelError(f"{name} is ragged: row 0 has shape {shapes[0]}, row {index} has {shape}")


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise KernelError(f"{name} holds {value!r:.40}, which is no number")
    try:
        return float(value)
    except OverflowError as error:
        raise KernelError(f"{name} holds a number beyond float64") from error


def _word(word: str) -> float:
    try:
        return float(word)
    except ValueError as error:
        raise KernelError(f"the kernel holds {word!r:.40}, which is no number") from error
