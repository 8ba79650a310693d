"""Where operands lie in memory makes no difference, and outputs are the caller's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.core.operations import BACKENDS, Array, arrays, operation, run, small_integers

from convolver.core.dtypes import TABLE, DTypeName

each_backend = pytest.mark.parametrize("name", BACKENDS)
FLOATS = [name for name, row in TABLE.items() if not row.exact]

FORMS = ["big-endian", "every second", "backwards", "columns first", "unaligned", "broadcast"]


def same_values(array: Array, form: str) -> Array:
    """These values, laid out otherwise."""
    if form == "big-endian" and array.dtype.isbuiltin == 1:  # ml_dtypes has none of the other order
        return array.astype(array.dtype.newbyteorder(">"))
    if form == "every second":
        return np.repeat(array, 2, axis=-1)[..., ::2]
    if form == "backwards":
        return array[..., ::-1].copy()[..., ::-1]
    if form == "columns first":
        return np.asfortranarray(array)
    if form == "broadcast":
        return np.broadcast_to(array, array.shape)
    return np.frombuffer(b"?" + array.tobytes(), array.dtype, offset=1).reshape(array.shape)


@each_backend
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "complex64", "complex128", "bfloat16"])
@pytest.mark.parametrize("parameters", [{"padding": 1}, {"transposed": True}, {}], ids=str)
def test_the_layout_in_memory_does_not_matter(name: str, dtype: DTypeName, form: str, parameters: Any) -> None:  # noqa: ANN401 - as callers write it
    op = operation((2, 5, 6, 5), (3, 3, 5, 5), dtype, layout="channels_last", **parameters)
    x, w, _ = arrays(op, 1, small_integers)
    y = run(op, same_values(x, form), same_values(w, form), name=name)
    np.testing.assert_array_equal(y, run(op, x, w, name=name))


@each_backend
@pytest.mark.parametrize("dtype", FLOATS)
def test_bytes_may_stand_anywhere(name: str, dtype: DTypeName) -> None:
    op = operation((1, 2, 4, 5), (2, 2, 2, 2), dtype, padding=[(1, 0), (2, 1)])
    x, w, _ = arrays(op, 1)
    outputs = set()
    for offset in range(17):
        there, kernel = (np.frombuffer(bytes(offset) + a.tobytes(), a.dtype, offset=offset) for a in (x, w))
        outputs.add(run(op, there.reshape(x.shape), kernel.reshape(w.shape), name=name).tobytes())
    assert len(outputs) == 1


@pytest.mark.parametrize("form", FORMS)
def test_nor_does_it_for_integers(form: str) -> None:
    op = operation((2, 5, 6, 5), (3, 3, 5, 5), "int16", layout="channels_last", padding=1)
    x, w, _ = arrays(op, 1, small_integers)
    np.testing.assert_array_equal(run(op, same_values(x, form), same_values(w, form)), run(op, x, w))


@each_backend
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_outputs_are_contiguous_and_the_callers_own(name: str, layout: str) -> None:
    op = operation((1, 1, 4, 4) if layout == "channels_first" else (1, 4, 4, 1), (1, 1, 1, 1), layout=layout)
    x, w, _ = arrays(op, 0)
    y = run(op, x, w, name=name)
    assert y.flags.c_contiguous
    assert y.flags.writeable
    assert not np.shares_memory(x, y)
