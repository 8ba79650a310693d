"""Files of weights: what is read of them, and when."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np
import pytest
from tests.client.weight_files import compressed, npz, one, outcome, safetensors

from convolver.client._weights import load_weights
from convolver.client.errors import WeightsError
from convolver.core import dtypes

if TYPE_CHECKING:
    from collections.abc import Callable

    Written = Callable[[str, bytes], Path]

NAMES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I64": np.int64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", NAMES)
def test_safetensors_are_mapped_with_their_dtype(written: Written, name: str) -> None:
    array = np.arange(6).reshape(1, 2, 3).astype(NAMES[name])
    entries = {
        "a.weight": one(name, [1, 2, 3], 0, array.nbytes),
        "empty": one("F32", [0, 3], array.nbytes, array.nbytes),
    }
    read = load_weights(written("a.safetensors", safetensors(entries, array.tobytes(), __metadata__={"format": "pt"})))
    assert list(read) == ["a.weight", "empty"]
    assert (read["a.weight"].dtype, read["empty"].shape) == (array.dtype, (0, 3))
    np.testing.assert_array_equal(read["a.weight"], array)


@pytest.mark.parametrize("save", [npz, compressed])
@pytest.mark.parametrize("dtype", [name for name in dtypes.TABLE if not name.startswith(("bfloat", "float8"))])
def test_npz_files_are_read(written: Written, save: Callable[..., bytes], dtype: str) -> None:
    array = np.arange(6).reshape(1, 2, 3).astype(dtype)
    arrays = {
        "w": array,
        "f": np.asfortranarray(array),
        "big": array.astype(array.dtype.newbyteorder(">")),
        "0": array[:0],
    }
    read = load_weights(str(written("a.NPZ", save(**arrays))))
    assert list(read) == list(arrays)
    for name, expected in arrays.items():
        assert read[name].shape == expected.shape
        np.testing.assert_array_equal(read[name], expected)


def test_a_file_larger_than_memory_costs_nothing_until_it_is_used(written: Written) -> None:
    path = written("a.safetensors", safetensors({"a": one("F32", [16, 2**30], 0, 2**36)}))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2**36)  # a hole, which takes no place on the disk either
    error, peak = outcome(path)
    assert error is None
    assert peak < 2**20
    assert load_weights(path)["a"][15, -1] == 0


def test_an_unaligned_header_does_no_harm(written: Written) -> None:
    data = np.arange(3.0).tobytes()
    contents = [safetensors({"a" * pad: one("F64", [3], 0, 24)}, data) for pad in range(1, 9)]
    read = [load_weights(written(f"{i}.safetensors", content)) for i, content in enumerate(contents)]
    assert all(next(iter(arrays.values())).tolist() == [0, 1, 2] for arrays in read)


def test_read_only_is_what_comes_back(written: Written) -> None:
    content = safetensors({"a": one("F32", [1], 0, 4)}, bytes(4))
    for path in (written("a.safetensors", content), written("a.npz", npz(a=np.ones(3)))):
        with pytest.raises(ValueError, match="read-only"):
            load_weights(path)["a"][0] = 1


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("a.bin", "is neither .safetensors nor .npz"), ("a.npz", "No such file"), ("a\0b.npz", "null byte")],
)
def test_other_files_are_refused(tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(WeightsError, match=complaint):
        load_weights(tmp_path / name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.npz").mkdir()
    with pytest.raises(WeightsError, match="directory"):
        load_weights(tmp_path / "a.npz")
