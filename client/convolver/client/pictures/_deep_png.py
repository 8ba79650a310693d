"""PNG with 16 bits a sample, through imagecodecs."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convolver.client.pictures._pictures import Page

HEADER_END = 33
"""Bytes of the signature (8) and the IHDR chunk (25), after which a colour profile may stand."""


def decode(data: bytes) -> NDArray[np.uint16]:
    """Planes, shape (channels, height, width), alpha last. A transparent colour (tRNS) becomes alpha."""
    return np.moveaxis(np.atleast_3d(imagecodecs.png_decode(data)), -1, 0)


def encode(page: Page, profile: bytes | None) -> bytes:
    """A PNG of 16 bits with its ICC profile."""
    data = bytes(imagecodecs.png_encode(page.interleaved()))
    if profile is None:
        return data
    return data[:HEADER_END] + _chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(profile)) + data[HEADER_END:]


def _chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk as the PNG specification, section 5.3, lays it out. imagecodecs writes none for profiles."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
