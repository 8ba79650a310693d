"""Files for the tests, written by the libraries themselves and not by the code under test."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from convolver.client.pictures import Page, Picture, PictureError, read_source

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def noise(shape: tuple[int, ...], dtype: str = "uint8") -> NDArray[Any]:
    """Samples over the whole range of an integer type, from 0 to 1 of a float."""
    generator = np.random.default_rng(7)
    if np.dtype(dtype).kind == "f":
        return generator.random(shape).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(info.min, info.max, shape, dtype, endpoint=True)


def raster(array: NDArray[Any], kind: str, mode: str | None = None, **options: object) -> bytes:
    """The bytes of a picture of 8 bits as Pillow writes it."""
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(*pages: NDArray[Any], **options: Any) -> bytes:  # noqa: ANN401  # the options of tifffile
    """The bytes of a TIFF with these pages as tifffile writes it."""
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        for page in pages:
            file.write(page, **{"photometric": "minisblack", "metadata": None, **options})
    return buffer.getvalue()


def read(path: Path, content: bytes) -> Picture:
    path.write_bytes(content)
    picture = read_source(path)
    assert isinstance(picture, Picture)
    return picture


def only_page(path: Path, content: bytes) -> Page:
    (page,) = read(path, content).pages
    return page


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(PictureError, match=re.escape(str(path))) as refused:
        read_source(path)
    return refused.value.message
