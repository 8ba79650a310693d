"""PNG, JPEG, BMP, WebP and GIF, through Pillow.

PNG of 16 bits goes through imagecodecs, since Pillow makes 8 of them without a word.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile

from convolver.client.pictures import _deep_png
from convolver.client.pictures._pictures import Page, Picture, turned_upright
from convolver.client.pictures.errors import PictureError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")

GREY = ("1", "L", "LA", "I;16")
COLOUR = ("P", "PA", "RGB", "RGBA")
SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
}


def read(path: Path) -> Picture:
    """Read a still picture: palettes become colours, 1 bit becomes 8, EXIF's Orientation is applied.

    Raises:
        PictureError: It is an animation, or its colours are neither grey nor RGB.
        Exception: Whatever Pillow raises for a broken file, or one beyond its limit against decompression bombs.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            _check(path, image)
            planes = _deep_png.decode(path.read_bytes()) if _is_deep(image) else _decode(image)
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            return Picture((Page.from_planes(turned_upright(planes, orientation)),), image.info.get("icc_profile"))


def encode(picture: Picture, format_name: str) -> bytes:
    """The bytes of a PNG, JPEG (quality 95, full colour resolution), BMP or WebP (lossless) of one page."""
    page = picture.pages[0]
    if page.dtype == np.uint16:
        return _deep_png.encode(page, picture.profile)
    image = Image.fromarray(page.interleaved())
    buffer = io.BytesIO()
    image.save(buffer, format_name, icc_profile=picture.profile, **SAVE_OPTIONS.get(format_name, {}))
    return buffer.getvalue()


def _check(path: Path, image: ImageFile.ImageFile) -> None:
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a telephone's JPEG with a second picture inside: the first counts
        raise PictureError(path, f"has {frames} frames; only a TIFF may have more than one page")
    if image.mode not in GREY + COLOUR:
        raise PictureError(
            path, f"its colours are {image.mode}; convert it to grey or RGB first, by its colour profile"
        )


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether a sample has 16 bits in the file, which the mode does not tell."""
    return image.format == "PNG" and str(image.tile[0].args).endswith("16B")


def _decode(image: Image.Image) -> NDArray[np.uint8]:
    """Planes of 8 bits, alpha last where there is transparency of any kind."""
    transparent = image.has_transparency_data
    grey = image.mode in GREY
    if not transparent:
        planes = np.atleast_3d(np.asarray(image.convert("L" if grey else "RGB")))
    else:
        planes = np.asarray(image.convert("RGBA"))[..., 2 if grey else 0 :]
    return np.moveaxis(planes, -1, 0)
