"""What the comparisons with SciPy share: a client of one back end, arrays of every type, the tolerance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import scipy.ndimage  # type: ignore[import-untyped]  # SciPy has no hints of its own
from hypothesis import strategies as st

from convolver.client import Client
from convolver.client.scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from convolver.client import Answer, Parameters
    from convolver.client._interchange import AnyArray

    Array = NDArray[Any]

BACKENDS = ["reference", "torch"]
WHOLE = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float32", "float64"]
COMPLEX = ["complex64", "complex128"]


class CountingClient(Client):
    """Asks one back end for floats, unless the call names another (not each has integers), and counts its calls."""

    def __init__(self, address: str, backend: str) -> None:
        super().__init__(address)
        self.backend = backend
        self.calls = 0

    def run(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        *,
        out: AnyArray = None,
        **parameters: Unpack[Parameters],
    ) -> Answer:
        self.calls += 1
        backend = "auto" if input.dtype.kind in "biu" else self.backend
        given: Parameters = {"backend": backend, **parameters}
        return super().run(input, weight, bias, out=out, **given)


def counting_client(address: str, backend: str) -> Iterator[CountingClient]:
    if backend == "torch":
        pytest.importorskip("torch", reason="torch is not installed: its back end is not tested")
    with CountingClient(address, backend) as client:
        yield client


def shapes(ndim: int, longest: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*[st.integers(1, longest)] * ndim)


def values(shape: tuple[int, ...], dtype: str, seed: int, largest: int | None = None) -> Array:
    """Integers over their whole range or up to `largest`; floats that need all their bits."""
    rng, kind = np.random.default_rng(seed), np.dtype(dtype)
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(kind)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        least, most = (int(limits.min), int(limits.max)) if largest is None else (-largest, largest)
        return rng.integers(max(least, int(limits.min)), min(most, int(limits.max)), shape, kind, endpoint=True)
    array = rng.normal(0, 30, shape)
    return (array + 1j * rng.normal(0, 30, shape) if kind.kind == "c" else array).astype(kind)


def tolerance(reference: Array, scale: Array, length: int, dtype: np.dtype[Any], sums: str) -> Array:
    """c (K+4) u scale + 2 u_out |reference| + the smallest normal number: sums of `length` products of type `sums`,
    rounded to `dtype`; `scale` is the same sum of absolute values.
    """
    u = np.finfo(sums).eps / 2
    c = 2 if dtype.kind == "c" else 1
    out = np.finfo(dtype)
    bound: Array = c * (length + 4) * u * np.abs(scale) + out.eps * np.abs(reference) + float(out.tiny)
    return bound


class Case(NamedTuple):
    """A call of scipy.ndimage and of ours."""

    function: str
    image: Array
    weights: Array
    more: dict[str, Any]

    def ours(self, client: CountingClient, **more: Any) -> Array:  # noqa: ANN401 - SciPy's own arguments
        result: Array = getattr(ndimage, self.function)(self.image, self.weights, **self.more, **more, client=client)
        return result

    def theirs(self, **more: Any) -> Array:  # noqa: ANN401 - SciPy's own arguments
        result: Array = getattr(scipy.ndimage, self.function)(self.image, self.weights, **self.more, **more)
        return result

    def promoted(self) -> Array:
        """What SciPy gives where it does not round complex numbers to single precision half-way."""
        result: Array = self._replace(image=self.image.astype(np.complex128)).theirs()
        return result

    def scale(self) -> Array:
        """The same sums of absolute values."""
        more = {**self.more, "cval": np.abs(self.more["cval"]), "output": np.float64}
        result: Array = getattr(scipy.ndimage, self.function)(np.abs(self.image), np.abs(self.weights), **more)
        return result


def as_integers(array: Array) -> Array:
    """SciPy's booleans may be bytes other than 0 and 1."""
    return array.view(np.uint8) != 0 if array.dtype.kind == "b" else array


def assert_equal(result: Array, expected: Array) -> None:
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(as_integers(result), as_integers(expected))
