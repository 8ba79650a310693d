from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.client.picture_files import noise, raster, tiff

from convolver.client.pictures import Picture, read_source

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client.conftest import Command
    from tests.conftest import RunningServer


@pytest.fixture
def there(server: RunningServer) -> list[str]:
    """The option that says where the real server is."""
    return ["--address", server.address]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A colour picture with transparency."""
    path = tmp_path / "photo.png"
    path.write_bytes(raster(noise((20, 30, 4)), "PNG"))
    return path


def planes(path: Path) -> list[object]:
    picture = read_source(path)
    assert isinstance(picture, Picture)
    result: list[object] = picture.pages[0].planes().tolist()
    return result


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_picture_is_filtered(convolver: Command, there: list[str], photo: Path) -> None:
    out = photo.with_name("out.png")
    ran = convolver("filter", photo, out, "--kernel", "box:size=3", *there)
    with Image.open(photo) as before, Image.open(out) as after:
        source, result = np.asarray(before).astype(float), np.asarray(after)
    assert result[1, 1, :3].tolist() == np.rint(source[:3, :3, :3].mean(axis=(0, 1))).tolist()
    assert result[..., 3].tolist() == source[..., 3].tolist()
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(f"{out}: 30x20 RGB with alpha, uint8; box:size=3, 3x3; ")


def test_the_address_of_the_environment_is_called(
    convolver: Command, server: RunningServer, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVOLVER_ADDRESS", server.address)
    assert convolver("filter", photo, photo.with_name("out.png"), "-k", "sobel").status == 0


def test_without_an_address_a_server_of_its_own_does_it(photo: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "CONVOLVER_ADDRESS"}
    files = [str(photo), str(photo.with_name("out.png"))]
    command = [sys.executable, "-m", "convolver.client.cli", "filter", *files, "--kernel", "box"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stderr) == (0, "")
    assert photo.with_name("out.png").exists()


@pytest.mark.parametrize(
    "kernel",
    ["identity", "0 0 0; 0 1 0; 0 0 0", "[[1]]", "-1 1 1", "identity.npy", "identity.json"],
)
def test_a_kernel_is_a_name_rows_json_or_a_file(
    convolver: Command, there: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("identity.npy", np.ones((1, 1), np.int8))
    (tmp_path / "identity.json").write_text("[[1]]")
    flat = np.full((5, 6), 70, np.uint8)
    Image.fromarray(flat).save("flat.png")
    assert convolver("filter", "flat.png", "out.png", "--kernel", kernel, *there).status == 0
    assert planes(tmp_path / "out.png") == [flat.tolist()]


def test_a_picture_may_replace_itself(convolver: Command, there: list[str], photo: Path) -> None:
    before = planes(photo)
    assert convolver("filter", photo, photo, "--kernel", "0 0 1", *there).status == 0
    after = planes(photo)
    assert after != before
    assert after[3] == before[3]


def test_options_reach_the_service(convolver: Command, there: list[str], tmp_path: Path) -> None:
    source, target = tmp_path / "a.npy", tmp_path / "b.npy"
    np.save(source, np.array([[1, 2, 4]], np.float32))
    options = ["--padding", "full", "--padding-mode", "constant", "--padding-value", "0.1", "--flip"]
    convolver("filter", source, target, "--kernel", "1 -1", *options, "--backend", "reference", *there)
    assert np.load(target)[0] == pytest.approx([1 - 0.1, 1, 2, 0.1 - 4])


@pytest.mark.parametrize(("options", "expected"), [([], -0.5), (["--range", "absolute"], 0.5)])
def test_a_float_array_is_mapped_only_if_asked(
    convolver: Command, there: list[str], tmp_path: Path, options: list[str], expected: float
) -> None:
    np.save(tmp_path / "a.npy", np.array([[2, 0, 1.5]], np.float32))
    convolver("filter", tmp_path / "a.npy", tmp_path / "b.npy", "-k", "-1 0 1", "--padding", "valid", *options, *there)
    result = np.load(tmp_path / "b.npy")
    assert result.tolist() == [[expected]]
    assert result.dtype == np.float32


def test_16_bits_stay_16(convolver: Command, there: list[str], tmp_path: Path) -> None:
    samples = noise((9, 8, 3), "uint16")
    (tmp_path / "a.tif").write_bytes(tiff(samples, photometric="rgb"))
    assert convolver("filter", tmp_path / "a.tif", tmp_path / "b.png", "-k", "identity", *there).status == 0
    assert planes(tmp_path / "b.png") == np.moveaxis(samples, -1, 0).tolist()


def test_pages_are_filtered_one_by_one_or_as_a_volume(convolver: Command, there: list[str], tmp_path: Path) -> None:
    volume = noise((4, 9, 8), "uint16")
    (tmp_path / "a.tif").write_bytes(tiff(*volume))
    for dims, name in (("2", "pages.tif"), ("3", "volume.tif")):
        options = ["-k", "box", "--padding", "valid", "--dims", dims]
        assert convolver("filter", tmp_path / "a.tif", tmp_path / name, *options, *there).status == 0
    pages, merged = tifffile.imread(tmp_path / "pages.tif"), tifffile.imread(tmp_path / "volume.tif")
    assert (pages.shape, merged.shape) == ((4, 7, 6), (2, 7, 6))
    assert merged[1, 2, 3] == np.rint(volume[1:4, 2:5, 3:6].mean())
    assert pages[1, 2, 3] == np.rint(volume[1, 2:5, 3:6].mean())


def test_a_folder_is_filtered_into_a_new_one(convolver: Command, there: list[str], photo: Path) -> None:
    (photo.parent / "b.JPG").write_bytes(raster(noise((5, 6)), "JPEG"))
    (photo.parent / "notes.txt").write_text("no picture")
    target = photo.parent / "out"
    ran = convolver("filter", photo.parent, target, "-k", "gaussian", *there)
    assert ran == (0, f"2 of 2 files filtered into {target}\n", "")
    assert names(target) == ["b.JPG", "photo.png"]


def test_a_bad_file_of_a_folder_is_reported_and_the_others_go_on(
    convolver: Command, there: list[str], photo: Path
) -> None:
    folder = photo.parent
    (folder / "broken.png").write_bytes(photo.read_bytes()[:99])
    (folder / "moving.gif").write_bytes(raster(noise((5, 6)), "GIF"))
    (folder / "tiny.png").write_bytes(raster(noise((2, 2)), "PNG"))
    ran = convolver("filter", folder, folder / "out", "-k", "box", "--padding", "valid", *there)
    assert (ran.status, ran.out) == (1, f"1 of 4 files filtered into {folder / 'out'}\n")
    assert [line.split(": ")[1] for line in ran.err.splitlines()] == [
        str(folder / "broken.png"),
        str(folder / "out" / "moving.gif"),
        str(folder / "tiny.png"),
    ]
    assert names(folder / "out") == ["photo.png"]


def test_a_folder_of_which_nothing_can_be_filtered_leaves_none_behind(
    convolver: Command, there: list[str], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"no picture")
    assert convolver("filter", tmp_path / "in", tmp_path / "out", "-k", "box", *there).status == 1
    assert names(tmp_path) == ["in"]


def test_a_file_goes_into_a_folder_under_its_own_name(convolver: Command, there: list[str], photo: Path) -> None:
    target = photo.parent / "out"
    target.mkdir()
    assert convolver("filter", photo, target, "-k", "box", *there).status == 0
    assert names(target) == ["photo.png"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["OUT.png", "-k", "sobell"], "'--kernel': no kernel is called 'sobell'; did you mean sobel"),
        (["OUT.png", "-k", "gaussian:sgma=2"], "no parameter 'sgma'; did you mean sigma?"),
        (["OUT.png", "-k", "1 2; 3"], "ragged"),
        (["OUT.png", "-k", "[[1, NaN]]"], "finite"),
        (["OUT.png", "-k", "[1, 2, 1]"], "is 1-D"),
        (["OUT.png", "-k", "[[[[1]]]]"], "is 4-D"),
        (["OUT.png", "-k", "[[1, 2]]", "--dims", "3"], "'--dims': the kernel is 2-D, shape (1, 2)"),
        (["OUT.png", "-k", "box", "--dims", "4"], "'--dims'"),
        (["OUT.png", "-k", "box", "--range", "wild"], "'wild' is not one of 'clip'"),
        (["OUT.png", "-k", "box", "--padding-value", "3"], "'--padding-value': it needs --padding-mode constant"),
        (["OUT.xyz", "-k", "box"], "the suffix of OUT.xyz must be one of .png"),
    ],
)
def test_a_wrong_command_line_is_status_2_and_writes_nothing(
    convolver: Command, photo: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], complaint: str
) -> None:
    monkeypatch.chdir(photo.parent)
    assert complaint in convolver("filter", photo, *options).complaint(2)
    assert names(photo.parent) == ["photo.png"]


NOWHERE = ["--address", "unix:/nowhere/at/all"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.png", "out.png", "-k", "box"], "missing.png: No such file or directory"),
        (["broken.png", "out.png", "-k", "box"], "broken.png: "),
        (["photo.png", "none/out.png", "-k", "box"], "none/out.png: there is no folder none"),
        (["photo.png", "out.jpg", "-k", "box"], "out.jpg: JPEG holds no alpha; .png .tif .tiff .webp .npy can"),
        (["deep.tif", "out.jpg", "-k", "box"], "out.jpg: JPEG holds uint8, not uint16"),
        (["empty.npy", "out.npy", "-k", "box"], "empty.npy: has shape (0, 5): there is nothing to filter"),
        (["photo.png", "out.png", "-k", "missing.npy"], "missing.npy: No such file"),
        (["photo.png", "out.png", "-k", "nan.npy"], "nan.npy holds nan"),
        (["photo.png", "out.png", "-k", "broken.json"], "broken.json is not JSON"),
        ([".", "none/out", "-k", "box"], "none/out: . is a folder, so this must be one too"),
        ([".", "photo.png", "-k", "box"], "photo.png: . is a folder, so this must be one too"),
        (["hollow", "out", "-k", "box"], "hollow: holds no file that ends in .png"),
        (["photo.png", "out.png", "-k", "box"], "unix:/nowhere/at/all"),
    ],
)
def test_what_goes_wrong_is_one_line_and_status_1_and_writes_nothing(
    convolver: Command, photo: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], complaint: str
) -> None:
    folder = photo.parent
    monkeypatch.chdir(folder)
    (folder / "broken.png").write_bytes(photo.read_bytes()[:99])
    (folder / "deep.tif").write_bytes(tiff(noise((5, 6), "uint16")))
    (folder / "broken.json").write_text("[[1, 2]")
    (folder / "hollow").mkdir()
    np.save("empty.npy", np.zeros((0, 5)))
    np.save("nan.npy", np.array([[np.nan]]))
    before = names(folder)
    assert complaint in convolver("filter", *arguments, *NOWHERE).complaint(1)
    assert names(folder) == before


@pytest.mark.parametrize(
    ("kernel", "options", "complaint"),
    [
        ("box:size=31", ["--padding", "valid"], "photo.png: "),
        ("box", ["--dims", "3"], "photo.png: a 3-D kernel needs a volume"),
        ("box", ["--backend", "abacus"], "photo.png: backend is 'abacus'"),
        ("1e39 1", [], "photo.png: the kernel holds 1e+39, which is beyond float32"),
    ],
)
def test_a_kernel_that_does_not_suit_the_picture_is_status_1_and_writes_nothing(
    convolver: Command, there: list[str], photo: Path, kernel: str, options: list[str], complaint: str
) -> None:
    target = photo.with_name("out.png")
    assert complaint in convolver("filter", photo, target, "-k", kernel, *options, *there).complaint(1)
    assert names(photo.parent) == ["photo.png"]


HIDDEN = "import sys; sys.modules[sys.argv.pop(1)] = None; from convolver.client.cli import main; main()"


@pytest.mark.parametrize("library", ["PIL", "tifffile", "imagecodecs"])
def test_a_missing_library_is_named_with_what_to_install(photo: Path, library: str) -> None:
    files = [str(photo), str(photo.with_name("out.png"))]
    command = [sys.executable, "-c", HIDDEN, library, "filter", *files, "--kernel", "box"]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    expected = f"convolver: {photo}: needs {library}: pip install 'convolver[pictures]'\n"
    assert (run.returncode, run.stderr) == (1, expected)


@pytest.mark.parametrize("library", ["PIL", "tifffile", "imagecodecs"])
def test_an_array_needs_no_such_library(tmp_path: Path, there: list[str], library: str) -> None:
    np.save(tmp_path / "a.npy", np.ones((4, 4)))
    files = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    subprocess.run([sys.executable, "-c", HIDDEN, library, "filter", *files, "-k", "box", *there], check=True)
    assert np.load(tmp_path / "b.npy").tolist() == pytest.approx(np.ones((4, 4)))
