"""Requests that are refused: how a table writes them, and what each of them must show."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.operation import Operation, Tensor
from convolver.core.parse import parse

IMAGE, KERNEL = (1, 3, 8, 8), (4, 3, 3, 3)
HUGE = 10**5000  # more digits than str() takes
DIGITS = "a number of 16610 bits"

Shape = tuple[Any, ...]


class Case(NamedTuple):
    """A request, the field that is wrong, and what its message must say."""

    parameters: dict[str, Any]
    field: str
    says: tuple[str, ...]
    tensors: tuple[Any, Any, Any]


def case(
    name: str,
    parameters: dict[str, Any],
    field: str,
    *says: str,
    input: Shape = IMAGE,
    weight: Shape = KERNEL,
    bias: Shape | None = None,
    dtype: Any = "float32",  # noqa: ANN401 - a name, or what is none
    dtypes: tuple[Any, Any, Any] | None = None,
) -> Any:  # noqa: ANN401 - pytest's name for it is private
    """One row of a table."""
    shapes, kinds = (input, weight, bias), dtypes or (dtype,) * 3
    tensors = tuple(None if shape is None else Tensor(kind, shape) for shape, kind in zip(shapes, kinds, strict=True))
    return pytest.param(Case(parameters, field, says, tensors), id=name)  # type: ignore[arg-type]  # three, as zipped


def described(
    parameters: Any = None,  # noqa: ANN401 - Parameters, or what is none
    input: Shape = IMAGE,
    weight: Shape = KERNEL,
    bias: Shape | None = None,
    dtype: Any = "float32",  # noqa: ANN401 - a name, or what is none
) -> Operation:
    """The operation of a request that may be refused by parsing or for its geometry."""
    tensors = Tensor(dtype, input), Tensor(dtype, weight), Tensor(dtype, bias) if bias is not None else None
    return _parsed(tensors, parameters or {})


def assert_refused(refused: Case) -> None:
    """By its own class, with its field and its numbers, in a message of a bearable length."""
    with pytest.raises(InvalidConvolution) as caught:
        _parsed(refused.tensors, refused.parameters)
    assert caught.value.field == refused.field
    for text in refused.says:
        assert text in caught.value.message
    assert len(caught.value.message) < 450


def _parsed(tensors: tuple[Any, Any, Any], parameters: Any) -> Operation:  # noqa: ANN401 - Parameters, or what is none
    operation = parse(*tensors, parameters)
    Geometry.of(operation)
    return operation
