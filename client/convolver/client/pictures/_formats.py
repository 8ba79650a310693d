"""Pictures and arrays in files: one table of what each kind of file can hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np

from convolver.client.pictures._arrays import encode_array, read_array
from convolver.client.pictures._files import replace_file
from convolver.client.pictures._pictures import Page, Picture
from convolver.client.pictures.errors import PictureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    Encode = Callable[[Picture], bytes]
    Source = Picture | NDArray[Any]

T = TypeVar("T")

NPY: Final = ".npy"
NUMBERS = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")


def _raster_encoder(format_name: str) -> Encode:
    from convolver.client.pictures import _raster

    return partial(_raster.encode, format_name=format_name)


def _tiff_encoder() -> Encode:
    from convolver.client.pictures import _tiff

    return _tiff.encode


@dataclass(frozen=True, slots=True)
class Format:
    """What a kind of picture file can hold.

    Attributes:
        name: Its name.
        encoder: Loads the libraries that write it.
        dtypes: The types of its samples.
        alpha: Whether it holds transparency.
        pages: Whether it holds several pages, and colours multiplied with alpha.
        side: The largest width and height in pixels.
    """

    name: str
    encoder: Callable[[], Encode]
    dtypes: tuple[str, ...] = ("uint8",)
    alpha: bool = False
    pages: bool = False
    side: int = 2**31 - 1

    def objections(self, picture: Picture) -> Iterator[str]:
        """Say what of the picture it cannot hold."""
        for page in picture.pages:
            if page.dtype.name not in self.dtypes:
                yield f"{self.name} holds {' and '.join(self.dtypes)}, not {page.dtype}"
            if page.alpha is not None and not self.alpha:
                yield f"{self.name} holds no alpha"
            if max(page.samples.shape) > self.side:
                yield f"{self.name} holds at most {self.side} pixels a side, not {max(page.samples.shape)}"
        if len(picture.pages) > 1 and not self.pages:
            yield f"{self.name} holds one page, not {len(picture.pages)}"
        if picture.premultiplied and not self.pages:
            yield f"{self.name} holds no colours that are multiplied with alpha"


_PNG = Format("PNG", partial(_raster_encoder, "PNG"), dtypes=("uint8", "uint16"), alpha=True)
_JPEG = Format("JPEG", partial(_raster_encoder, "JPEG"), side=65500)
_TIFF = Format("TIFF", _tiff_encoder, dtypes=NUMBERS, alpha=True, pages=True)
FORMATS: dict[str, Format] = {
    ".png": _PNG,
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".bmp": Format("BMP", partial(_raster_encoder, "BMP")),
    ".webp": Format("WebP", partial(_raster_encoder, "WEBP"), alpha=True, side=16383),
}
WRITABLE = (*FORMATS, NPY)
READABLE = (*WRITABLE, ".gif")


def read_source(path: Path) -> Source:
    """Read a picture, or the array of a `.npy` file.

    Raises:
        PictureError: The file is missing, broken, empty or not of a kind that is filtered, or its library is missing.
    """
    source = read_array(path) if path.suffix.lower() == NPY else _read_picture(path)
    shape = source.shape if isinstance(source, np.ndarray) else source.pages[0].samples.shape
    if 0 in shape:
        raise PictureError(path, f"has shape {shape}: there is nothing to filter")
    return source


def suited(source: Source, path: Path) -> Source:
    """Return the source as its result will be written to `path`: unchanged for `.npy`, else as a picture.

    Raises:
        PictureError: The format is unknown or cannot hold it, or its library is missing.
    """
    if path.suffix.lower() == NPY:
        if isinstance(source, Picture) and not source.uniform():
            raise PictureError(path, "pages of different sizes or types make no array; .tif holds them")
        return source
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise PictureError(path, f"the suffix must be one of {' '.join(WRITABLE)}")
    picture = _picture(source, path) if isinstance(source, np.ndarray) else source
    for objection in form.objections(picture):
        others = [suffix for suffix, other in FORMATS.items() if not any(other.objections(picture))]
        raise PictureError(path, f"{objection}; {' '.join([*others, NPY])} can")
    _load(form.encoder, path)
    return picture


def write_source(path: Path, source: Source) -> None:
    """Write what `suited` returned, or its result; `path` appears whole or not at all.

    Raises:
        PictureError: It cannot be encoded or written.
    """
    if path.suffix.lower() == NPY:
        data = encode_array(source if isinstance(source, np.ndarray) else _array(source))
    else:
        encode = FORMATS[path.suffix.lower()].encoder()
        try:
            data = encode(_picture(source, path) if isinstance(source, np.ndarray) else source)
        except (ValueError, OSError, RuntimeError) as error:
            raise PictureError(path, f"cannot be encoded: {error}") from error
    replace_file(path, data)


def _read_picture(path: Path) -> Picture:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        return _load(partial(_reader, magic), path)(path)
    except PictureError:
        raise
    except OSError as error:
        raise PictureError(path, error.strerror or f"cannot be read: {error}") from error
    except Exception as error:  # a decoder raises whatever a broken file makes it trip over
        raise PictureError(path, f"cannot be read: {str(error) or type(error).__name__}") from error


def _reader(magic: bytes) -> Callable[[Path], Picture]:
    from convolver.client.pictures import _raster, _tiff

    return _tiff.read if magic in _tiff.MAGIC else _raster.read


def _load(load: Callable[[], T], path: Path) -> T:
    try:
        return load()
    except ModuleNotFoundError as error:
        raise PictureError(path, f"needs {error.name}: pip install 'convolver[pictures]'") from error


def _picture(array: NDArray[Any], path: Path) -> Picture:
    """An array of shape (height, width) as one grey page, of (pages, height, width) as several."""
    if array.ndim not in (2, 3):
        raise PictureError(
            path, f"an array of shape {array.shape} is neither (height, width) nor (pages, height, width)"
        )
    pages = array[np.newaxis] if array.ndim == 2 else array
    return Picture(tuple(Page(page[np.newaxis]) for page in pages))


def _array(picture: Picture) -> NDArray[Any]:
    """A picture as an array of shape (pages, planes, height, width), without the first two where they are 1."""
    array = np.stack([page.planes() for page in picture.pages])
    return array.squeeze(axis=tuple(axis for axis in (0, 1) if array.shape[axis] == 1))
