"""Damaged and dishonest files of weights: one kind of error, and no more memory than their bytes could fill."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client.weight_files import compressed, npy, npz, one, outcome, safetensors, zipped

from convolver.client._weights import DEFLATE_RATIO, load_weights
from convolver.client.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable

    Written = Callable[[str, bytes], Path]


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str, bytes], Path]:
    def write(name: str, content: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "header would have 0 bytes, but the file has 0"),
        (struct.pack("<Q", 2**63) + b"{}", "header would have 9223372036854775808 bytes, but the file has 10"),
        (struct.pack("<Q", 3) + b"{}", "header would have 3 bytes"),
        (struct.pack("<Q", 2) + b"[]", "no JSON object"),
        (struct.pack("<Q", 2) + b"{,", "no JSON: "),
        (struct.pack("<Q", 2) + b"\xff\xff", "no JSON: "),
        (struct.pack("<Q", 20000) + b"[" * 20000, "no JSON: "),
        (struct.pack("<Q", 13) + b'{"a":1,"a":2}', "a name is there twice"),
        (safetensors({"a": 3}), "tensor 'a': it must have dtype, shape and data_offsets"),
        (safetensors({"a": {"dtype": "F32", "shape": []}}), "tensor 'a': it must have"),
        (safetensors({"a": one("F4", [2], 0, 1)}, b"1"), "tensor 'a': dtype is 'F4', none of BOOL, "),
        (safetensors({"a": one([], [2], 0, 1)}, b"1"), "tensor 'a': dtype is [], none"),  # type: ignore[arg-type]  # wrong on purpose
        (safetensors({"a": one("F32", [-1], 0, 4)}), "tensor 'a': shape is [-1]"),
        (safetensors({"a": one("F32", [True], 0, 4)}, bytes(4)), "tensor 'a': shape is [True]"),
        (safetensors({"a": one("U8", [1] * 33, 0, 1)}, b"1"), "tensor 'a': shape is [1, 1"),
        (safetensors({"a": one("F32", [0, 2**31 - 1, 2**31 - 1], 0, 0)}), "tensor 'a': shape is [0, 2147"),
        (safetensors({"a": one("F32", [2], 0, 4)}, bytes(4)), "shape (2,) takes 8 bytes, but data_offsets are (0, 4)"),
        (safetensors({"a": one("F32", [1], 8, 4)}, bytes(8)), "data_offsets are (8, 4)"),
        (safetensors({"a": {**one("F32", [1], 0, 4), "data_offsets": [4]}}, bytes(4)), "data_offsets are [4]"),
        (safetensors({"a": one("F32", [1], 4, 8)}, bytes(8)), "starts at 4, but the one before ends at 0"),
        (safetensors({"a": one("F32", [2**30], 0, 2**32)}, bytes(8)), "ends at 4294967296, but there are 8 bytes"),
        (safetensors({"a": one("U8", [4], 0, 4), "b": one("U8", [4], 2, 6)}, bytes(6)), "'b': its data starts at 2"),
        (safetensors({"a": one("F32", [1], 0, 4)}, bytes(8)), "its tensors take 4 bytes, but there are 8"),
    ],
)
def test_a_safetensors_file_that_contradicts_itself_is_refused(
    written: Written, content: bytes, complaint: str
) -> None:
    path = written("a.safetensors", content)
    with pytest.raises(WeightsError) as refused:
        load_weights(path)
    assert complaint in str(refused.value)
    assert (refused.value.message.startswith(f"{path}: "), refused.value.path) == (True, path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"no zip", "is no .npz file: File is not a zip file"),
        (npz(a=np.ones(9))[:-30], "is no .npz file"),
        (npz(a=np.array([{}])), "tensor 'a': dtype has dtype object, which is none of"),
        (npz(a=np.array(["text"])), "tensor 'a': dtype has dtype <U4"),
        (npz(a=np.ones(3, ml_dtypes.bfloat16)), "NumPy's files forget bfloat16 and float8, .safetensors keeps them"),
        (zipped("a.txt", b""), "tensor 'a.txt': is no .npy"),
        (zipped("a.npy", b"\x93NUMPY\x01"), "tensor 'a': cannot be read: EOF"),
        (zipped("a.npy", npy("{'descr': '<f4'")), "tensor 'a': cannot be read"),
        (zipped("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}")), "takes 12 bytes"),
        (zipped("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-3,)}")), "shape (-3,)"),
        (zipped("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999, 9)}")), "shape (99999"),
        (zipped("a.npy", npy("{'descr': '<f4', 'fortran_order': False, 'shape': (0, 2147483648)}")), "shape (0, "),
        (zipped("a.npy", b"\x93NUMPY\x03\x00" + bytes(4)), "version (3, 0)"),
        (npz(a=np.ones(9)).replace(np.ones(9).tobytes(), np.zeros(9).tobytes()), "tensor 'a': cannot be read: Bad CRC"),
    ],
)
def test_an_npz_file_that_contradicts_itself_is_refused(written: Written, content: bytes, complaint: str) -> None:
    with pytest.raises(WeightsError) as refused:
        load_weights(written("a.npz", content))
    assert complaint in str(refused.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile says so, and writes it
def test_members_of_one_name_and_of_other_compressions_are_refused(written: Written) -> None:
    member = zipfile.ZipFile(io.BytesIO(npz(a=np.ones(3)))).read("a.npy")
    for method, times, complaint in (
        (zipfile.ZIP_STORED, 2, "'a': is there twice"),
        (zipfile.ZIP_BZIP2, 1, "'a': is neither stored nor deflated"),
    ):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for _ in range(times):
                archive.writestr("a.npy", member)
        with pytest.raises(WeightsError, match=complaint):
            load_weights(written("a.npz", buffer.getvalue()))


def test_a_member_that_claims_more_than_its_bytes_can_hold_is_refused_unread(written: Written) -> None:
    content = compressed(a=np.zeros(1000))
    claimed = struct.pack("<I", zipfile.ZipFile(io.BytesIO(content)).infolist()[0].file_size)
    path = written("a.npz", content.replace(claimed, struct.pack("<I", 2**31)))
    with pytest.raises(WeightsError, match=r"tensor 'a': would be 2147483648 bytes, which \d+ cannot hold"):
        load_weights(path)


def test_a_member_with_more_than_it_claims_is_not_inflated(written: Written) -> None:
    content = compressed(a=np.zeros(2**20))
    claimed = struct.pack("<I", zipfile.ZipFile(io.BytesIO(content)).infolist()[0].file_size)
    path = written("a.npz", content.replace(claimed, struct.pack("<I", 1000)))
    error, peak = outcome(path)
    assert isinstance(error, WeightsError)
    assert peak < 2**20


VALID = {
    "a.safetensors": safetensors({"w": one("F32", [2, 3], 0, 24), "b": one("BF16", [4], 24, 32)}, bytes(32)),
    "stored.npz": npz(w=np.ones((2, 3)), b=np.ones(4, np.int8)),
    "deflated.npz": compressed(w=np.zeros((40, 30)), b=np.ones(4, np.int8)),
}

mutations = st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 4), st.binary(max_size=8)), min_size=1, max_size=4)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(VALID)), mutations=mutations)
def test_damaged_files_raise_one_error_and_take_no_more_memory_than_they_could_fill(
    tmp_path: Path, name: str, mutations: list[tuple[int, int, bytes]]
) -> None:
    content = VALID[name]
    for place, cut, put in mutations:
        at = place % (len(content) + 1)
        content = content[:at] + put + content[at + cut :]
    path = tmp_path / name
    path.write_bytes(content)
    error, peak = outcome(path)
    assert error is None or isinstance(error, WeightsError), repr(error)
    assert peak < 2**20 + DEFLATE_RATIO * len(content)


numbers = st.integers(-(2**65), 2**65) | st.integers(0, 40)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BOOL", "BF16", "X"]) | values,
        "shape": st.lists(numbers, max_size=3) | values,
        "data_offsets": st.tuples(numbers, numbers) | values,
    },
    optional={"x": values},
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=3), entries | values, max_size=3), size=st.integers(0, 40))
def test_a_header_of_anything_raises_one_error(tmp_path: Path, header: dict[str, Any], size: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(safetensors(header, bytes(size)))
    error, peak = outcome(path)
    assert error is None or isinstance(error, WeightsError), repr(error)
    assert peak < 2**20
