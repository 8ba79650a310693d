from __future__ import annotations

import io
import re
import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from tests.client.picture_files import noise, only_page, read, refusal, tiff

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


@pytest.mark.parametrize(
    ("array", "options", "planes"),
    [
        (noise((5, 7), "uint8"), {}, None),
        (noise((5, 7), "uint16"), {}, None),
        (noise((5, 7), "int16"), {}, None),
        (noise((5, 7), "float32"), {}, None),
        (noise((5, 7), "float64"), {"byteorder": ">"}, None),
        (noise((5, 7, 3), "uint16"), {"photometric": "rgb"}, None),
        (noise((5, 7, 3), "uint16"), {"photometric": "rgb", "compression": "lzw", "predictor": True}, None),
        (noise((5, 7, 4), "uint16"), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, None),
        (noise((5, 7, 2), "uint8"), {"planarconfig": "contig", "extrasamples": ["unassalpha"]}, None),
        (noise((50, 70), "uint8"), {"tile": (16, 16)}, None),
        (np.array([[True, False]]), {}, [[[255, 0]]]),
        (np.array([[True, False]]), {"photometric": "miniswhite"}, [[[0, 255]]]),
        (np.array([[0, 250]], np.uint8), {"photometric": "miniswhite"}, [[[255, 5]]]),
        (np.array([[0, 65000]], np.uint16), {"photometric": "miniswhite"}, [[[65535, 535]]]),
    ],
)
def test_a_tiff_of_any_depth_is_read(
    tmp_path: Path, array: NDArray[Any], options: dict[str, Any], planes: object
) -> None:
    byteorder = options.pop("byteorder", "<")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, byteorder=byteorder, **{"photometric": "minisblack", "metadata": None, **options})
    page = only_page(tmp_path / "a.tif", buffer.getvalue())
    expected = np.moveaxis(np.atleast_3d(array), -1, 0).tolist() if planes is None else planes
    assert page.planes().tolist() == expected


def test_separate_planes_of_a_tiff_are_read(tmp_path: Path) -> None:
    array = noise((3, 5, 7), "uint16")
    page = only_page(tmp_path / "a.tif", tiff(array, photometric="rgb", planarconfig="separate"))
    assert page.samples.tolist() == array.tolist()


def test_a_palette_of_a_tiff_becomes_its_colours(tmp_path: Path) -> None:
    colours = np.zeros((3, 256), np.uint16)
    colours[:, 1] = [0x1000, 0x2000, 0xFFFF]
    page = only_page(tmp_path / "a.tif", tiff(np.array([[0, 1]], np.uint8), photometric="palette", colormap=colours))
    assert page.samples.tolist() == [[[0, 0x10]], [[0, 0x20]], [[0, 0xFF]]]


def test_jpeg_in_a_tiff_becomes_rgb(tmp_path: Path) -> None:
    array = np.full((16, 16, 3), (200, 40, 90), np.uint8)
    page = only_page(tmp_path / "a.tif", tiff(array, photometric="rgb", compression="jpeg"))
    assert page.samples[:, 5, 5].tolist() == pytest.approx([200, 40, 90], abs=3)


def test_every_page_of_a_tiff_is_read(tmp_path: Path) -> None:
    pages = [noise((5, 7)), noise((3, 4)), noise((2, 2, 3))]
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        for page in pages:
            file.write(page, photometric="rgb" if page.ndim == 3 else "minisblack", metadata=None)
    picture = read(tmp_path / "a.tif", content.getvalue())
    assert [page.samples.shape for page in picture.pages] == [(1, 5, 7), (1, 3, 4), (3, 2, 2)]


@pytest.mark.parametrize("offset", [1000, 10**6, 10**9])
def test_a_tiff_whose_later_pages_cannot_be_found_is_refused(tmp_path: Path, offset: int) -> None:
    content = tiff(noise((5, 7)), noise((5, 7)), noise((5, 7)))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        second = file.pages[1].offset
    broken = content.replace(struct.pack("<I", second), struct.pack("<I", offset))
    assert "what follows the first" in refusal(tmp_path / "a.tif", broken)


def test_a_tiff_whose_pages_form_a_circle_is_refused(tmp_path: Path) -> None:
    content = tiff(noise((5, 7)), noise((5, 7)))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        end = file.pages.next_page_offset or 0
        first = file.pages[0].offset
    broken = content[:end] + struct.pack("<I", first) + content[end + 4 :]
    assert "page 2 is one of those before it" in refusal(tmp_path / "a.tif", broken)


def test_a_broken_tiff_is_complained_of_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = tiff(noise((5, 7)))
    refusal(tmp_path / "a.tif", content[:8] + b"\xff" + content[9:])
    assert capfd.readouterr() == ("", "")


def test_reduced_copies_in_a_tiff_are_left_out(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tifffile.TiffWriter(content) as file:
        file.write(noise((8, 8)), metadata=None)
        file.write(noise((4, 4)), metadata=None, subfiletype=1)
    assert only_page(tmp_path / "a.tif", content.getvalue()).samples.shape == (1, 8, 8)


def test_premultiplied_alpha_is_remembered(tmp_path: Path) -> None:
    content = tiff(noise((5, 7, 4)), photometric="rgb", extrasamples=["assocalpha"])
    assert read(tmp_path / "a.tif", content).premultiplied


def test_planes_that_imagej_hides_behind_one_page_are_refused(tmp_path: Path) -> None:
    content = tiff(noise((5, 7)), description="ImageJ=1.53\nimages=10\nslices=10\n")
    assert "ImageJ" in refusal(tmp_path / "a.tif", content)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (tiff(noise((5, 7, 4)), photometric="separated"), "SEPARATED"),
        (tiff(noise((5, 7, 3)), photometric="cielab"), "CIELAB"),
        (tiff(noise((5, 7, 5)), planarconfig="contig"), "grey or RGB, with alpha or without"),
        (tiff(noise((5, 7), "uint8") >> 4, bitspersample=4), "samples of 4 bits"),
        (tiff(noise((5, 7)).astype(np.complex64)), "samples of 64 bits, complex64"),
        (tiff(noise((5, 7)), noise((5, 7), "uint16")), "types"),
    ],
)
def test_a_tiff_of_another_layout_is_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    assert re.search(complaint, refusal(tmp_path / "a.tif", content))
