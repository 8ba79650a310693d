from __future__ import annotations

import io
import re
import struct
import zlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from tests.client.picture_files import noise, only_page, raster, read, refusal, tiff

from convolver.client.pictures import PictureError, read_source

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

PROFILE = b"not a profile, but kept as it is" * 9


def deep_png(array: NDArray[Any]) -> bytes:
    return bytes(imagecodecs.png_encode(array))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_colours_become_a_plane_each(tmp_path: Path, kind: str) -> None:
    array = noise((5, 7, 3))
    page = only_page(tmp_path / "a", raster(array, kind, lossless=True))
    assert page.samples.tolist() == np.moveaxis(array, -1, 0).tolist()
    assert page.alpha is None


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "GIF"])
def test_grey_stays_one_plane(tmp_path: Path, kind: str) -> None:
    page = only_page(tmp_path / "a", raster(np.full((5, 7), 90, np.uint8), kind))
    if kind != "GIF":  # which knows palettes alone
        assert page.samples.shape == (1, 5, 7)
    assert abs(page.samples.astype(int) - 90).max() <= 1


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    image.save(tmp_path / "a.png")
    page = only_page(tmp_path / "a.png", (tmp_path / "a.png").read_bytes())
    assert page.samples[:, 0].tolist() == [[200, 10], [100, 20], [50, 30]]


def test_a_transparent_entry_of_a_palette_becomes_alpha(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([1, 0])
    image.save(tmp_path / "a.png", transparency=0)
    page = only_page(tmp_path / "a.png", (tmp_path / "a.png").read_bytes())
    assert page.alpha is not None
    assert page.alpha.tolist() == [[255, 0]]


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    page = only_page(tmp_path / "a", raster(np.array([[0, 255]], np.uint8), "PNG", "1"))
    assert page.samples.tolist() == [[[0, 255]]]


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_kept_apart(tmp_path: Path, channels: int) -> None:
    array = noise((5, 7, channels))
    page = only_page(tmp_path / "a", raster(array, "PNG"))
    assert page.samples.tolist() == np.moveaxis(array[..., :-1], -1, 0).tolist()
    assert page.alpha is not None
    assert page.alpha.tolist() == array[..., -1].tolist()


@pytest.mark.parametrize(("shape", "transparent"), [((1, 2), 7), ((1, 2, 3), (7, 7, 7))])
def test_a_transparent_colour_becomes_alpha(tmp_path: Path, shape: tuple[int, ...], transparent: object) -> None:
    array = np.zeros(shape, np.uint8)
    array[0, 1] = 7
    page = only_page(tmp_path / "a", raster(array, "PNG", transparency=transparent))
    assert len(page.samples) == (1 if len(shape) == 2 else 3)
    assert page.alpha is not None
    assert page.alpha.tolist() == [[255, 0]]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
def test_16_bits_of_a_png_stay_16(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = noise(shape, "uint16")
    page = only_page(tmp_path / "a", deep_png(array))
    assert page.planes().tolist() == np.moveaxis(np.atleast_3d(array), -1, 0).tolist()
    assert page.dtype == np.uint16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "16-bit PNG"])
def test_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    array = noise((4, 3, 3), "uint16" if "16" in kind else "uint8")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if kind == "PNG":
        content = raster(array, "PNG", exif=exif)
    elif kind == "TIFF":
        content = tiff(array, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        content = deep_png(array)
        content = content[:33] + png_chunk(b"eXIf", exif.tobytes()[6:]) + content[33:]
    upright = Image.fromarray((array & 0xFF).astype(np.uint8))
    upright.getexif()[ExifTags.Base.Orientation] = orientation
    expected = np.asarray(ImageOps.exif_transpose(upright))
    samples = only_page(tmp_path / "a", content).samples & 0xFF
    assert samples.tolist() == np.moveaxis(expected, -1, 0).tolist()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_colour_profile_is_kept(tmp_path: Path, kind: str) -> None:
    assert read(tmp_path / "a", raster(noise((5, 7, 3)), kind, icc_profile=PROFILE)).profile == PROFILE


def test_the_colour_profile_of_a_tiff_is_kept(tmp_path: Path) -> None:
    assert read(tmp_path / "a", tiff(noise((5, 7, 3)), photometric="rgb", iccprofile=PROFILE)).profile == PROFILE


def test_cmyk_is_refused_by_its_name(tmp_path: Path) -> None:
    assert "its colours are CMYK; convert it" in refusal(tmp_path / "a", raster(noise((5, 7, 4)), "JPEG", "CMYK"))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_refused(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(noise((9, 9, 3))), Image.new("RGB", (9, 9))]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    assert "has 2 frames" in refusal(tmp_path / "a", buffer.getvalue())


def test_of_a_telephones_two_pictures_in_a_jpeg_the_first_counts(tmp_path: Path) -> None:
    first, second = Image.new("L", (9, 7), 40), Image.new("L", (9, 7), 200)
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    assert only_page(tmp_path / "a.jpg", buffer.getvalue()).samples.max() <= 41


@pytest.mark.filterwarnings("default")  # Pillow only warns up to twice its limit
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pillows_limit_against_decompression_bombs_is_an_error(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    content = raster(noise((10, 10)), "PNG") if kind == "PNG" else tiff(noise((10, 10)))
    assert re.search("100 pixels.*bomb", refusal(tmp_path / "a", content))


BROKEN: dict[str, bytes] = {
    "PNG": raster(noise((50, 60, 3)), "PNG"),
    "16-bit PNG": deep_png(noise((50, 60, 3), "uint16")),
    "JPEG": raster(noise((50, 60, 3)), "JPEG"),
    "BMP": raster(noise((50, 60, 3)), "BMP"),
    "WebP": raster(noise((50, 60, 3)), "WEBP"),
    "GIF": raster(noise((50, 60)), "GIF"),
    "TIFF": tiff(noise((50, 60))),
    "zlib TIFF": tiff(noise((50, 60)), compression="zlib"),
    "LZW TIFF": tiff(noise((50, 60)), compression="lzw"),
    "JPEG TIFF": tiff(noise((50, 60)), compression="jpeg"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_a_truncated_picture_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    content = BROKEN[kind]
    assert refusal(tmp_path / "a", content[: int(len(content) * share)])


@pytest.mark.parametrize("kind", BROKEN)
def test_a_corrupt_picture_is_read_or_refused_and_nothing_else(tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(3)
    path = tmp_path / "a"
    for _ in range(40):
        content = bytearray(BROKEN[kind])
        for position in generator.integers(0, min(len(content), 400), 6):
            content[position] = generator.integers(256)
        path.write_bytes(content)
        with suppress(PictureError):
            read_source(path)


@pytest.mark.parametrize("content", [b"", b"GIF", b"hello, world", b"II*\0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(tmp_path / "a.png", content)


def test_a_missing_picture_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"a\.png: No such file"):
        read_source(tmp_path / "a.png")


@pytest.mark.parametrize("dtype", ["uint8", "float16", ">f4", ">i2", "float64"])
def test_an_array_is_read_as_it_is(tmp_path: Path, dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    found = read_source(tmp_path / "a.npy")
    assert isinstance(found, np.ndarray)
    assert found.tolist() == array.tolist()
    assert found.dtype == np.dtype(dtype).newbyteorder("=")


def test_an_array_in_fortran_order_is_read(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(6).reshape(2, 3))
    np.save(tmp_path / "a.npy", array)
    found = read_source(tmp_path / "a.npy")
    assert isinstance(found, np.ndarray)
    assert found.tolist() == array.tolist()


def test_an_array_of_objects_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([None]), allow_pickle=True)
    with pytest.raises(PictureError, match="objects"):
        read_source(tmp_path / "a.npy")


def test_an_array_that_promises_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 3)))
    content = (tmp_path / "a.npy").read_bytes()
    lie = content.replace(b"(3, 3), }        ", b"(99999999999,3),}")
    assert lie != content
    assert "mmap length" in refusal(tmp_path / "a.npy", lie)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0, 5)])
def test_an_array_without_elements_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "a.npy", np.zeros(shape))
    with pytest.raises(PictureError, match="nothing to filter"):
        read_source(tmp_path / "a.npy")
