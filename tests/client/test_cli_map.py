"""`convolver map`: the layers of a stack over the frames of an array."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from ml_dtypes import bfloat16
from tests.client.stack_frames import RNG, frame_by_frame, names, normal, write_scaling, write_stack
from tests.client.weight_files import npy

from convolver.client import Conv
from convolver.client._pipeline import MOST_IN_FLIGHT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from tests.client.conftest import Command
    from tests.conftest import RunningServer

    from convolver.client import Client

    Array = NDArray[Any]

NOWHERE = ["--address", "unix:/nowhere/at/all"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def there(server: RunningServer) -> list[str]:
    """The option that says where the real server is."""
    return ["--address", server.address]


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_the_outputs_are_those_of_the_frames_one_by_one(
    convolver: Command, client: Client, there: list[str], folder: Path, ndim: int
) -> None:
    layers = write_stack(folder, ndim)
    frames = normal(20, 3, *[9, 8, 6][:ndim])
    np.save("in.npy", frames)
    ran = convolver("map", "stack.json", "in.npy", "out.npy", *there)
    outputs = np.load("out.npy")
    size = "x".join(map(str, outputs.shape[1:]))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"out.npy: 20 frames of {size}, float32\n"
    assert outputs.shape == (20, 2, *[4, 4, 3][:ndim])
    assert outputs == pytest.approx(frame_by_frame(client, layers, frames), abs=1e-4)
    assert names(folder) == ["in.npy", "out.npy", "stack.json", "w.npz"]


@pytest.mark.parametrize(
    "options", [["--batch", "3"], ["--batch", "7"], ["--batch", "99"], ["--in-flight", "1"], ["--algorithm", "direct"]]
)
def test_no_way_of_sending_them_changes_the_outputs(
    convolver: Command, client: Client, there: list[str], folder: Path, options: list[str]
) -> None:
    layers, frames = write_stack(folder), normal(7, 3, 8, 8)
    np.save("in.npy", frames)
    assert convolver("map", "stack.json", "in.npy", "out.npy", *options, "--backend", "reference", *there).status == 0
    assert np.load("out.npy") == pytest.approx(frame_by_frame(client, layers, frames), abs=1e-4)


def test_frames_may_have_their_channels_last(
    convolver: Command, client: Client, there: list[str], folder: Path
) -> None:
    layers, frames = write_stack(folder, layout="channels_last"), normal(5, 8, 6, 3)
    np.save("in.npy", frames)
    assert convolver("map", "stack.json", "in.npy", "out.npy", *there).status == 0
    assert np.load("out.npy") == pytest.approx(frame_by_frame(client, layers, frames), abs=1e-4)


@pytest.mark.parametrize("stored", [np.asfortranarray, lambda array: array.astype(">f4")], ids=["columns", "big"])
def test_frames_may_be_stored_in_any_order(
    convolver: Command, client: Client, there: list[str], folder: Path, stored: Callable[[Array], Array]
) -> None:
    layers, frames = write_stack(folder), normal(5, 3, 8, 8)
    np.save("in.npy", stored(frames))
    assert convolver("map", "stack.json", "in.npy", "out.npy", *there).status == 0
    assert np.load("out.npy") == pytest.approx(frame_by_frame(client, layers, frames), abs=1e-4)


def test_integers_stay_exact(convolver: Command, there: list[str], folder: Path) -> None:
    frames = RNG.integers(-9, 9, (4, 1, 5, 5), np.int16)
    np.save("in.npy", frames)
    write_scaling(folder, 3, np.int16)
    assert convolver("map", "stack.json", "in.npy", "out.npy", *there).status == 0
    outputs = np.load("out.npy")
    assert outputs.tolist() == (3 * frames).tolist()


def test_pooling_needs_no_weights(convolver: Command, there: list[str], folder: Path) -> None:
    frames = normal(6, 3, 8, 8)
    np.save("in.npy", frames)
    (folder / "stack.toml").write_text('input = [1, 3, 8, 8]\n[[layers]]\nkind = "max"\nkernel = 2\n')
    assert convolver("map", "stack.toml", "in.npy", "out.npy", *there).status == 0
    assert np.load("out.npy").tolist() == frames.reshape(6, 3, 4, 2, 4, 2).max(axis=(3, 5)).tolist()


def test_no_frames_give_no_outputs_of_their_shape(convolver: Command, there: list[str], folder: Path) -> None:
    write_stack(folder)
    np.save("in.npy", np.zeros((0, 3, 10, 8), np.float32))
    assert convolver("map", "stack.json", "in.npy", "out.npy", *there).out.startswith("out.npy: 0 frames of 2x5x4")
    outputs = np.load("out.npy")
    assert (outputs.shape, outputs.dtype) == ((0, 2, 5, 4), np.float32)


def test_the_weights_stay_on_the_server(convolver: Command, client: Client, there: list[str], folder: Path) -> None:
    layers = write_stack(folder)
    np.save("in.npy", normal(3, 3, 8, 8))
    assert convolver("map", "stack.json", "in.npy", "out.npy", *there).status == 0
    first = layers[0]
    assert isinstance(first, Conv)
    digest = client.layer(first.weight, first.bias, **first.parameters).digest
    assert client.held_layer(digest).digest == digest


def test_weights_may_come_from_another_file(convolver: Command, client: Client, there: list[str], folder: Path) -> None:
    layers, frames = write_stack(folder), normal(2, 3, 8, 8)
    (folder / "w.npz").rename("other.npz")
    np.save("in.npy", frames)
    options = ["--weights", "other.npz", *there]
    assert convolver("map", "stack.json", "in.npy", "out.npy", *options).status == 0
    assert np.load("out.npy") == pytest.approx(frame_by_frame(client, layers, frames), abs=1e-4)


def test_a_file_that_is_there_is_replaced_and_keeps_its_permissions(
    convolver: Command, there: list[str], folder: Path
) -> None:
    write_stack(folder)
    np.save("in.npy", normal(2, 3, 8, 8))
    (folder / "real.npy").write_text("before")
    (folder / "real.npy").chmod(0o640)
    (folder / "out.npy").symlink_to("real.npy")
    assert convolver("map", "stack.json", "in.npy", "out.npy", *there).status == 0
    assert (folder / "out.npy").is_symlink()
    assert (folder / "real.npy").stat().st_mode & 0o777 == 0o640
    assert np.load("real.npy").shape == (2, 2, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["in.npy", "out.npz"], "the suffix of out.npz must be .npy"),
        (["in.npy", "in.npy"], "'OUT': in.npy is IN"),
        (["in.npy", "link.npy"], "'OUT': link.npy is IN"),
        (["in.npy", "out.npy", "--batch", "0"], "'--batch'"),
        (["in.npy", "out.npy", "--in-flight", "0"], "'--in-flight'"),
        (["in.npy", "out.npy", "--in-flight", str(MOST_IN_FLIGHT + 1)], f"less than or equal to {MOST_IN_FLIGHT}"),
        (["in.npy"], "Missing argument 'OUT'"),
    ],
)
def test_a_wrong_command_line_is_status_2_and_writes_nothing(
    convolver: Command, folder: Path, arguments: list[str], complaint: str
) -> None:
    write_stack(folder)
    np.save("in.npy", normal(2, 3, 8, 8))
    (folder / "link.npy").symlink_to("in.npy")
    before = names(folder)
    assert complaint in convolver("map", "stack.json", *arguments, *NOWHERE).complaint(2)
    assert names(folder) == before


HUGE = npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 1, 1)}\n")


def arrays() -> Iterator[tuple[str, Array]]:
    yield "in", normal(2, 3, 8, 8)
    yield "flat", normal(3, 8, 8)
    yield "deep", normal(2, 2, 3, 8, 8)
    yield "scalar", np.array(1.0)
    yield "words", np.array([["a"]])
    yield "objects", np.array([[{}]], object)


def write_arrays(folder: Path) -> None:
    for name, array in arrays():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "brain.npy", np.zeros((2, 3, 8, 8), bfloat16))
    (folder / "cut.npy").write_bytes((folder / "in.npy").read_bytes()[:-1])
    (folder / "huge.npy").write_bytes(HUGE)
    (folder / "text.npy").write_text("no array")
    (folder / "folder.npy").mkdir()


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (["missing.npy", "out.npy"], "missing.npy: No such file or directory"),
        (["folder.npy", "out.npy"], "folder.npy: Is a directory"),
        (["text.npy", "out.npy"], "text.npy: is no .npy file of numbers: "),
        (["cut.npy", "out.npy"], "cut.npy: is no .npy file of numbers: "),
        (["huge.npy", "out.npy"], "huge.npy: is no .npy file of numbers: "),
        (["objects.npy", "out.npy"], "objects.npy: is no .npy file of numbers: "),
        (["words.npy", "out.npy"], "words.npy: it has dtype <U1, which is none of bool, int8"),
        (["brain.npy", "out.npy"], "bfloat16 and float8 are no types of .npy files"),
        (["flat.npy", "out.npy"], "flat.npy: has shape (3, 8, 8); the stack takes 4 axes: frames, channels and"),
        (["deep.npy", "out.npy"], "deep.npy: has shape (2, 2, 3, 8, 8); the stack takes 4 axes"),
        (["scalar.npy", "out.npy"], "scalar.npy: has shape (); the stack takes 4 axes"),
        (["in.npy", "none/out.npy"], "none/out.npy: there is no folder none"),
        (["in.npy", "folder.npy"], "folder.npy: is no file that can be replaced"),
        (["in.npy", "out.npy"], "unix:/nowhere/at/all"),
    ],
)
def test_files_that_are_no_frames_are_refused_before_a_server_is_asked(
    convolver: Command, folder: Path, files: list[str], complaint: str
) -> None:
    write_stack(folder)
    write_arrays(folder)
    before = names(folder)
    assert complaint in convolver("map", "stack.json", *files, *NOWHERE).complaint(1)
    assert names(folder) == before


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ('"a"', "[4, 3, 3, 3]", "stack.json: layers[0].weight is the shape (4, 3, 3, 3): such a layer can be planned"),
        ('"weights": "w.npz", ', "", "layers[0].weight is 'a', which is no tensor of the weights; name a file"),
        ('"weights": "w.npz", ', '"weights": "v.npz", ', "v.npz"),
        ('"kernel"', '"kernle"', "layers[1].kernle is not known; did you mean kernel?"),
    ],
)
def test_a_stack_that_cannot_be_run_is_refused_before_a_server_is_asked(
    convolver: Command, folder: Path, old: str, new: str, complaint: str
) -> None:
    write_stack(folder)
    np.save("in.npy", normal(2, 3, 8, 8))
    text = (folder / "stack.json").read_text().replace('"bias": "bias", ', '"bias": false, ' if "[" in new else "")
    (folder / "stack.json").write_text(text.replace(old, new))
    before = names(folder)
    assert complaint in convolver("map", "stack.json", "in.npy", "out.npy", *NOWHERE).complaint(1)
    assert names(folder) == before


@pytest.mark.parametrize(
    ("frames", "options", "complaint"),
    [
        (np.zeros((2, 4, 8, 8), np.float32), [], "input has 4 channels"),
        (np.zeros((2, 3, 1, 8), np.float32), [], "layers[1]"),
        (np.zeros((2, 3, 8, 8), np.float64), [], "float64"),
        (np.zeros((2, 3, 8, 8), np.float32), ["--backend", "abacus"], "backend is 'abacus'"),
    ],
)
def test_what_the_service_refuses_is_one_line_and_leaves_the_file_as_it_was(
    convolver: Command, there: list[str], folder: Path, frames: Array, options: list[str], complaint: str
) -> None:
    write_stack(folder)
    np.save("in.npy", frames)
    (folder / "out.npy").write_text("before")
    before = names(folder)
    assert complaint in convolver("map", "stack.json", "in.npy", "out.npy", *options, *there).complaint(1)
    assert names(folder) == before
    assert (folder / "out.npy").read_text() == "before"


def test_a_frame_that_fails_after_others_leaves_nothing_half_written(
    convolver: Command, there: list[str], folder: Path
) -> None:
    frames = np.ones((30, 1, 4, 4), np.int8)
    frames[20] = 100
    np.save("in.npy", frames)
    write_scaling(folder, 2, np.int8)
    (folder / "out.npy").write_text("before")
    before = names(folder)
    assert "200" in convolver("map", "stack.json", "in.npy", "out.npy", *there).complaint(1)
    assert names(folder) == before
    assert (folder / "out.npy").read_text() == "before"
