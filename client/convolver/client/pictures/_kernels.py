"""What a kernel for pictures and volumes is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from convolver.client.pictures import _named_kernels
from convolver.client.pictures.errors import KernelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convolver.client.pictures._choices import Range, SpatialDimensions

LARGEST_KERNEL: Final = 2**22
"""Taps of the largest kernel: 2048 x 2048."""


@dataclass(frozen=True, eq=False, slots=True)
class Kernel:
    """One kernel, or several whose results become the length of their vector (the magnitude of a gradient).

    Attributes:
        name: What the user called it.
        taps: float64, shape (filters, *K), K being (rows, columns) or (pages, rows, columns). They are applied as a
            cross-correlation.
        range: The mapping of results to brightness that suits it.
    """

    name: str
    taps: NDArray[np.float64]
    range: Range

    def __post_init__(self) -> None:
        """Raise KernelError where the taps are no kernel."""
        _check_shape(self.name, self.shape)
        _check_finite(self.name, self.taps)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its spatial shape."""
        return self.taps.shape[1:]

    @classmethod
    def from_array(cls, array: NDArray[Any], name: str = "kernel") -> Kernel:
        """Take a kernel from numbers of shape (rows, columns) or (pages, rows, columns).

        Its range is `absolute` where the numbers sum to 0 (it answers to changes alone), else `clip`.

        Raises:
            KernelError: The array has another rank, is empty or too large, or holds what is no finite real number.
        """
        if array.dtype.kind not in "iuf":
            raise KernelError(f"{name} has dtype {array.dtype}; a kernel holds integers or floats")
        taps = np.asarray(array, np.float64)[np.newaxis]
        kernel = cls(name, taps, "clip")
        answers_to_changes = abs(taps.sum()) <= 1e-9 * np.abs(taps).sum()
        return cls(name, taps, "absolute") if answers_to_changes else kernel

    @classmethod
    def named(cls, specification: str, ndim: SpatialDimensions = 2) -> Kernel:
        """Make one of the kernels of `docs/filter.md` from its name and parameters: `gaussian:sigma=2,truncate=3`.

        Raises:
            KernelError: No such kernel or parameter (near ones are named), a value out of its range, or too many taps.
        """
        recipe, values = _named_kernels.parse(specification)
        _check_shape(specification, (recipe.size(**values),) * ndim)
        return cls(specification, recipe.build(ndim, **values), recipe.range)


def _check_shape(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3):
        hint = "; write a single row as [[1, 0, -1]]" if len(shape) == 1 else ""
        raise KernelError(f"{name} is {len(shape)}-D; a kernel is 2-D or 3-D{hint}")
    taps = 1
    for length in shape:
        taps *= length
    if not 0 < taps <= LARGEST_KERNEL:
        raise KernelError(f"{name} has {taps} numbers, shape {shape}; a kernel has 1 to {LARGEST_KERNEL}")


def _check_finite(name: str, taps: NDArray[np.float64]) -> None:
    for index in np.argwhere(~np.isfinite(taps))[:1].tolist():
        raise KernelError(f"{name} holds {taps[tuple(index)]} at {index[1:]}; a kernel needs finite numbers")
