"""What a picture is, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

COLOURS = {1: "grey", 3: "RGB"}


@dataclass(frozen=True, eq=False, slots=True)
class Page:
    """One page, upright.

    Attributes:
        samples: Shape (channels, height, width): grey or red, green, blue, in the file's own integer or float type.
        alpha: Shape (height, width), the same type; None where the page is opaque.
    """

    samples: NDArray[Any]
    alpha: NDArray[Any] | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of samples and alpha."""
        return self.samples.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of samples and alpha."""
        return self.samples.nbytes + (0 if self.alpha is None else self.alpha.nbytes)

    def __str__(self) -> str:
        channels, height, width = self.samples.shape
        alpha = "" if self.alpha is None else " with alpha"
        return f"{width}x{height} {COLOURS[channels]}{alpha}, {self.dtype}"

    def interleaved(self) -> NDArray[Any]:
        """Samples and alpha as files hold them: (height, width), or (height, width, channels)."""
        planes = self.planes()
        return planes[0] if len(planes) == 1 else np.ascontiguousarray(np.moveaxis(planes, 0, -1))

    def planes(self) -> NDArray[Any]:
        """Samples and alpha, shape (channels and alpha, height, width)."""
        return self.samples if self.alpha is None else np.concatenate([self.samples, self.alpha[np.newaxis]])

    @classmethod
    def from_planes(cls, planes: NDArray[Any]) -> Page:
        """Tell samples from alpha: 1 plane is grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha."""
        has_alpha = len(planes) in (2, 4)
        return cls(planes[:-1], planes[-1]) if has_alpha else cls(planes)


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """One page, or several of a TIFF.

    Attributes:
        pages: At least one.
        profile: The ICC profile that says what its colours mean; None where the file names none.
        premultiplied: Whether colours are already multiplied with alpha.
    """

    pages: tuple[Page, ...]
    profile: bytes | None = None
    premultiplied: bool = False

    def __str__(self) -> str:
        first = str(self.pages[0])
        return first if len(self.pages) == 1 else f"{len(self.pages)} pages of {first}"

    def with_pages(self, pages: Sequence[Page]) -> Picture:
        """The same colours' meaning, other pages."""
        return replace(self, pages=tuple(pages))

    def uniform(self) -> bool:
        """Whether all pages agree in size, channels, alpha and type."""
        return len({(page.samples.shape, page.alpha is None, page.dtype) for page in self.pages}) == 1


def turned_upright(planes: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror planes, shape (..., height, width), as Orientation, 1 to 8, of EXIF and TIFF asks."""
    if orientation in (5, 6, 7, 8):
        planes = planes.swapaxes(-1, -2)
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return planes[..., ::rows, ::columns]
