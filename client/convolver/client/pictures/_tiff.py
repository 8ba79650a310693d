"""TIFF of any depth and number of pages, through tifffile."""

from __future__ import annotations

import io
import logging
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import tifffile
from PIL import Image

from convolver.client.pictures._pictures import Page, Picture, turned_upright
from convolver.client.pictures.errors import PictureError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # our errors say once what is wrong with a file

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION, ICC_PROFILE = 274, 34675
COLOURS = (
    tifffile.PHOTOMETRIC.MINISBLACK,
    tifffile.PHOTOMETRIC.MINISWHITE,
    tifffile.PHOTOMETRIC.RGB,
    tifffile.PHOTOMETRIC.PALETTE,
)
CLASSIC_LIMIT = 3 * 2**30
"""Bytes of samples from which a BigTIFF is written: a classic one ends at 4 GiB."""


def read(path: Path) -> Picture:
    """Read all pages of a TIFF but reduced copies: palettes become colours, 1 bit becomes 8, Orientation is applied.

    Raises:
        PictureError: It is truncated, of a layout that `docs/filter.md` does not name, or beyond Pillow's limit.
        Exception: Whatever tifffile raises for a broken file.
    """
    with tifffile.TiffFile(path) as tiff:
        every = _all_pages(path, tiff)
        pages = [page for page in every if not page.is_reduced] or every
        _check_file(path, tiff, pages)
        premultiplied = any(tifffile.EXTRASAMPLE.ASSOCALPHA in page.extrasamples for page in pages)
        return Picture(tuple(_read_page(page) for page in pages), _tag(pages[0], ICC_PROFILE), premultiplied)


def encode(picture: Picture) -> bytes:
    """The bytes of a TIFF, its pages compressed without loss."""
    alpha = tifffile.EXTRASAMPLE.ASSOCALPHA if picture.premultiplied else tifffile.EXTRASAMPLE.UNASSALPHA
    buffer = io.BytesIO()
    size = sum(page.nbytes for page in picture.pages)
    with tifffile.TiffWriter(buffer, bigtiff=size > CLASSIC_LIMIT) as tiff:
        for page in picture.pages:
            tiff.write(
                page.interleaved(),
                photometric="rgb" if len(page.samples) == 3 else "minisblack",
                planarconfig=None if page.alpha is None and len(page.samples) == 1 else "contig",
                extrasamples=None if page.alpha is None else [alpha],
                compression="zlib",
                iccprofile=picture.profile,
                software="convolver",
                metadata=None,
            )
    return buffer.getvalue()


def _all_pages(path: Path, tiff: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The chain of pages to its end. tifffile follows a circle for ever, and leaves out what it cannot find."""
    pages: dict[int, tifffile.TiffPage] = {}
    for page in tiff.pages:
        if page.offset in pages:
            raise PictureError(path, f"is broken: page {len(pages)} is one of those before it")
        pages[page.offset] = cast("tifffile.TiffPage", page)
    tiff.filehandle.seek(tiff.pages.next_page_offset or 0)
    following = tiff.filehandle.read(tiff.tiff.offsetsize)
    if len(following) < tiff.tiff.offsetsize or any(following):
        raise PictureError(path, f"is broken: what follows the first {len(pages)} pages cannot be read")
    return list(pages.values())


def _check_file(path: Path, tiff: tifffile.TiffFile, pages: list[tifffile.TiffPage]) -> None:
    planes = int((tiff.imagej_metadata or {}).get("images", 1))
    if tiff.is_stk or planes > len(pages):
        raise PictureError(
            path, "holds planes in ImageJ's or MetaMorph's own way; write it with one page for each plane"
        )
    if len({page.dtype for page in pages}) != 1:
        raise PictureError(path, f"has pages of several types: {' '.join(sorted({str(page.dtype) for page in pages}))}")
    size = path.stat().st_size
    for number, page in enumerate(pages):
        _check_page(path, number, page)
        ends = [offset + length for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True)]
        if max(ends, default=0) > size:
            raise PictureError(path, f"is truncated: page {number} ends at byte {max(ends)}, the file at {size}")


def _check_page(path: Path, number: int, page: tifffile.TiffPage) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    pixels = page.imagewidth * page.imagelength
    if limit is not None and pixels > limit:
        raise PictureError(path, f"page {number} has {pixels} pixels; the limit against decompression bombs is {limit}")
    decoded = page.compression == tifffile.COMPRESSION.JPEG and page.photometric == tifffile.PHOTOMETRIC.YCBCR
    if page.photometric not in COLOURS and not decoded:
        name = tifffile.PHOTOMETRIC(page.photometric).name
        raise PictureError(path, f"its colours are {name}; convert it to grey or RGB first, by its colour profile")
    extra = len(page.extrasamples)
    if page.samplesperpixel - extra not in (1, 3) or extra > 1 or page.axes not in ("YX", "YXS", "SYX"):
        raise PictureError(
            path, f"page {number} has shape {page.shape}; grey or RGB, with alpha or without, is filtered"
        )
    if page.dtype is None or page.dtype.kind not in "buif" or page.bitspersample not in (1, 8, 16, 32, 64):
        raise PictureError(
            path, f"page {number} has samples of {page.bitspersample} bits, {page.dtype}; no such numbers are filtered"
        )


def _read_page(page: tifffile.TiffPage) -> Page:
    data = page.asarray()
    planes = data if page.axes == "SYX" else np.moveaxis(np.atleast_3d(data), -1, 0)
    return Page.from_planes(turned_upright(_colours(page, planes), _tag(page, ORIENTATION) or 1))


def _colours(page: tifffile.TiffPage, planes: NDArray[Any]) -> NDArray[Any]:
    """Planes in which a larger number is brighter, 8 bits at least."""
    if planes.dtype == np.bool_:
        planes = planes.astype(np.uint8) * 255
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        return (page.colormap[:, planes[0]] >> 8).astype(np.uint8)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and planes.dtype.kind == "u":
        return np.concatenate([np.iinfo(planes.dtype).max - planes[:1], planes[1:]])
    return planes


def _tag(page: tifffile.TiffPage, code: int) -> Any:  # noqa: ANN401  # a tag's value is of its own type
    tag = page.tags.get(code)
    return None if tag is None else tag.value
