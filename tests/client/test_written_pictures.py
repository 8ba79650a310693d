from __future__ import annotations

import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.client.picture_files import noise

from convolver.client.pictures import Page, Picture, PictureError, _files, read_source, suited, write_source

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROFILE = b"not a profile, but kept as it is" * 9


def picture(channels: int = 1, dtype: str = "uint8", *, alpha: bool = False, pages: int = 1) -> Picture:
    planes = [noise((channels + alpha, 5, 7), dtype) for _ in range(pages)]
    return Picture(tuple(Page(one[:channels], one[channels] if alpha else None) for one in planes))


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [
        (".png", "uint8"),
        (".png", "uint16"),
        (".webp", "uint8"),
        (".tif", "uint8"),
        (".tiff", "uint16"),
        (".tif", "int16"),
        (".tif", "uint32"),
        (".tif", "float16"),
        (".tif", "float32"),
        (".tif", "float64"),
    ],
)
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str, dtype: str, channels: int, *, alpha: bool) -> None:
    path = tmp_path / f"a{suffix}"
    written = picture(channels, dtype, alpha=alpha)
    write_source(path, written)
    again = read_source(path)
    assert isinstance(again, Picture)
    (page,) = again.pages
    expected = written.pages[0].planes()
    if suffix == ".webp" and channels == 1:  # which knows no grey
        expected = np.concatenate([expected[:1], expected[:1], expected])
    assert page.planes().tolist() == expected.tolist()
    assert page.dtype == dtype


@pytest.mark.parametrize("channels", [1, 3])
def test_an_opaque_picture_survives_bmp(tmp_path: Path, channels: int) -> None:
    written = picture(channels)
    write_source(tmp_path / "a.bmp", written)
    again = read_source(tmp_path / "a.bmp")
    assert isinstance(again, Picture)
    assert again.pages[0].planes().tolist() == written.pages[0].planes().tolist()


def test_a_jpeg_is_written_with_full_colours(tmp_path: Path) -> None:
    samples = np.zeros((3, 16, 16), np.uint8)
    samples[0, :, ::2] = 255
    write_source(tmp_path / "a.jpg", Picture((Page(samples),)))
    with Image.open(tmp_path / "a.jpg") as image:
        assert abs(np.asarray(image).astype(int) - np.moveaxis(samples, 0, -1)).mean() < 4


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif"])
def test_the_colour_profile_goes_along(tmp_path: Path, name: str) -> None:
    write_source(tmp_path / name, Picture(picture(3).pages, PROFILE))
    again = read_source(tmp_path / name)
    assert isinstance(again, Picture)
    assert again.profile == PROFILE


def test_the_colour_profile_goes_along_with_16_bits(tmp_path: Path) -> None:
    write_source(tmp_path / "a.png", Picture(picture(3, "uint16").pages, PROFILE))
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert image.info["icc_profile"] == PROFILE


def test_all_pages_are_written(tmp_path: Path) -> None:
    written = picture(3, "uint16", pages=4)
    write_source(tmp_path / "a.tif", written)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert [page.asarray().tolist() for page in file.pages] == [
            page.interleaved().tolist() for page in written.pages
        ]


@pytest.mark.parametrize(("premultiplied", "kind"), [(True, "ASSOCALPHA"), (False, "UNASSALPHA")])
def test_a_tiff_says_what_its_alpha_is(tmp_path: Path, kind: str, *, premultiplied: bool) -> None:
    write_source(tmp_path / "a.tif", Picture(picture(3, alpha=True).pages, premultiplied=premultiplied))
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        assert page.extrasamples == (tifffile.EXTRASAMPLE[kind],)


@pytest.mark.parametrize(
    ("name", "unfit", "complaint"),
    [
        ("a.jpg", picture(3, "uint16"), r"JPEG holds uint8, not uint16; \.png \.tif \.tiff \.npy can"),
        ("a.webp", picture(1, "uint16"), "WebP holds uint8, not uint16"),
        ("a.png", picture(1, "float32"), r"PNG holds uint8 and uint16, not float32; \.tif \.tiff \.npy can"),
        ("a.tif", picture(1, "int64"), r"not int64; \.npy can"),
        ("a.jpg", picture(3, alpha=True), r"JPEG holds no alpha; \.png \.tif \.tiff \.webp \.npy can"),
        ("a.bmp", picture(1, alpha=True), "BMP holds no alpha"),
        ("a.png", picture(pages=2), "PNG holds one page, not 2"),
        ("a.png", Picture(picture(3, alpha=True).pages, premultiplied=True), "multiplied with alpha"),
        ("a.webp", Picture((Page(np.zeros((1, 1, 16384), np.uint8)),)), "at most 16383 pixels a side, not 16384"),
        ("a.gif", picture(), r"the suffix must be one of \.png"),
        ("a", picture(), r"the suffix must be one of \.png"),
        ("a.png", np.zeros((2, 3, 4, 5), np.uint8), r"\(2, 3, 4, 5\) is neither"),
        ("a.png", np.zeros(5, np.uint8), r"\(5,\) is neither"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_any_work(
    name: str, unfit: Picture | NDArray[Any], complaint: str
) -> None:
    with pytest.raises(PictureError, match=complaint):
        suited(unfit, Path(name))


def test_an_array_becomes_a_grey_picture_or_pages(tmp_path: Path) -> None:
    array = noise((3, 5, 7), "uint16")
    write_source(tmp_path / "a.png", suited(array[0], tmp_path / "a.png"))
    write_source(tmp_path / "a.tif", suited(array, tmp_path / "a.tif"))
    one, several = read_source(tmp_path / "a.png"), read_source(tmp_path / "a.tif")
    assert isinstance(one, Picture)
    assert isinstance(several, Picture)
    assert one.pages[0].samples.tolist() == array[:1].tolist()
    assert [page.samples[0].tolist() for page in several.pages] == array.tolist()


@pytest.mark.parametrize(
    ("source", "shape"),
    [
        (picture(), (5, 7)),
        (picture(3), (3, 5, 7)),
        (picture(3, alpha=True), (4, 5, 7)),
        (picture(pages=2), (2, 5, 7)),
        (picture(3, pages=2), (2, 3, 5, 7)),
        (Picture((Page(np.zeros((1, 1, 7), np.uint8)),)), (1, 7)),
    ],
)
def test_a_picture_becomes_an_array_of_planes(tmp_path: Path, source: Picture, shape: tuple[int, ...]) -> None:
    write_source(tmp_path / "a.npy", source)
    assert np.load(tmp_path / "a.npy").shape == shape


def test_pages_of_different_sizes_make_no_array(tmp_path: Path) -> None:
    mixed = Picture((Page(np.zeros((1, 2, 2), np.uint8)), Page(np.zeros((1, 3, 2), np.uint8))))
    with pytest.raises(PictureError, match="make no array"):
        suited(mixed, tmp_path / "a.npy")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(self: Path, _: Path) -> Path:
        assert self.read_bytes().startswith(b"\x89PNG")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PictureError, match="No space left on device"):
        write_source(path, picture())
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


def test_nothing_is_written_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="No such file"):
        write_source(tmp_path / "none" / "a.png", picture())


def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_source(tmp_path / "a.png", picture())
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch(0o640)
    write_source(tmp_path / "a.png", picture())
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o640


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.png").touch()
    (tmp_path / "link.png").symlink_to("real.png")
    write_source(tmp_path / "link.png", picture())
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").stat().st_size


@pytest.mark.parametrize(("name", "complaint"), [("none/a.png", "there is no folder"), ("folder", "is no file")])
def test_a_place_where_nothing_can_be_written_is_known_beforehand(tmp_path: Path, name: str, complaint: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(PictureError, match=complaint):
        _files.check_folder(tmp_path / name)
