"""Weights in files: `.safetensors` and `.npz`, either of which a stranger may have made.

The `safetensors` library (0.8) is not used here: for NumPy it refuses float8 and copies all that it reads.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from convolver.client.errors import WeightsError
from convolver.core import dtypes
from convolver.core.errors import ConvolverError, shown
from convolver.core.operation import LARGEST

if TYPE_CHECKING:
    from collections.abc import Sequence

    from convolver.core.dtypes import DTypeName
    from convolver.core.tensors import Array

LARGEST_HEADER = 100_000_000
"""Bytes of a .safetensors header; the format's own limit."""
MOST_DIMENSIONS = 32
"""NumPy 1 has no more."""
DEFLATE_RATIO = 1032
"""Deflate makes at most so many bytes of one (zlib's own documentation)."""

_SAFETENSORS: dict[str, DTypeName] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


def load_weights(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a `.safetensors` or `.npz` file by name, read-only.

    A `.safetensors` file is mapped into memory: its data is read where it is used, so the file must not be cut short
    meanwhile. Of an `.npz` everything is read now.

    Raises WeightsError for a file of another kind, and for one that is missing, damaged or dishonest about its sizes;
    no more memory is taken than its own bytes can fill.
    """
    file = Path(path)
    readers = {".safetensors": _read_safetensors, ".npz": _read_npz}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise WeightsError(file, f"is neither {' nor '.join(readers)}")
    try:
        with file.open("rb") as stream:
            return reader(file, stream)
    except OSError as error:
        raise WeightsError(file, error.strerror or str(error)) from error
    except WeightsError:
        raise
    except ValueError as error:  # a name that no file has
        raise WeightsError(file, str(error)) from error


def _read_safetensors(path: Path, stream: IO[bytes]) -> dict[str, Array]:
    """Eight bytes with the header's length, the header in JSON, the data (github.com/huggingface/safetensors)."""
    size = os.fstat(stream.fileno()).st_size
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(LARGEST_HEADER, size - 8):
        raise WeightsError(path, f"its header would have {length} bytes, but the file has {size}")
    entries = _entries(path, stream.read(length))
    data = np.zeros(0, np.uint8)
    if size > 8 + length:
        data = np.asarray(np.memmap(stream, np.uint8, "r", 8 + length))
    parts = {name: _Part(path, name, entry) for name, entry in entries.items()}
    _check_places(path, parts, data.size)
    return {name: part.of(data) for name, part in parts.items()}


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises ValueError where a name is there twice, of which JSON would keep the last."""
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name is there twice")
    return made


def _entries(path: Path, header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(path, f"its header is no JSON: {error}") from error
    if not isinstance(entries, dict):
        raise WeightsError(path, "its header is no JSON object")
    entries.pop("__metadata__", None)
    return entries


class _Part:
    """What the header says of one tensor, and where that is."""

    __slots__ = ("begin", "dtype", "end", "shape")

    def __init__(self, path: Path, name: str, entry: object) -> None:
        told = entry if isinstance(entry, dict) else {}
        if set(told) != {"dtype", "shape", "data_offsets"}:
            raise WeightsError(path, "it must have dtype, shape and data_offsets, and no more", name)
        known = isinstance(told["dtype"], str) and told["dtype"] in _SAFETENSORS
        if not known:
            raise WeightsError(path, f"dtype is {shown(told['dtype'])}, none of {', '.join(_SAFETENSORS)}", name)
        self.dtype = dtypes.TABLE[_SAFETENSORS[told["dtype"]]].numpy
        if not _are_counts(told["shape"]) or not _is_shape(told["shape"], self.dtype):
            raise WeightsError(path, f"shape is {shown(told['shape'])}", name)
        if not _are_counts(told["data_offsets"]) or len(told["data_offsets"]) != 2:
            raise WeightsError(path, f"data_offsets are {shown(told['data_offsets'])}", name)
        self.shape: tuple[int, ...] = tuple(told["shape"])
        self.begin, self.end = told["data_offsets"]
        needed = prod(self.shape) * self.dtype.itemsize
        if self.end - self.begin != needed:
            offsets = f"({shown(self.begin)}, {shown(self.end)})"
            raise WeightsError(
                path, f"shape {shown(self.shape)} takes {shown(needed)} bytes, but data_offsets are {offsets}", name
            )

    def of(self, data: Array) -> Array:
        """The tensor, a view of the data."""
        return data[self.begin : self.end].view(self.dtype).reshape(self.shape)


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _is_shape(shape: Sequence[int], dtype: np.dtype[Any]) -> bool:
    """Whether NumPy and the contract know such arrays; an empty dimension counts as 1, as NumPy counts it."""
    known = len(shape) <= MOST_DIMENSIONS and all(0 <= length <= LARGEST for length in shape)
    return known and prod(max(1, length) for length in shape) * dtype.itemsize < 2**63


def _check_places(path: Path, parts: dict[str, _Part], size: int) -> None:
    """The tensors fill the data without gaps or overlaps, as the format demands."""
    position = 0
    for name, part in sorted(parts.items(), key=lambda item: (item[1].begin, item[1].end)):
        if part.begin != position:
            raise WeightsError(path, f"its data starts at {part.begin}, but the one before ends at {position}", name)
        if part.end > size:
            raise WeightsError(path, f"its data ends at {part.end}, but there are {size} bytes: truncated?", name)
        position = part.end
    if position != size:
        raise WeightsError(path, f"its tensors take {position} bytes, but there are {size}")


def _read_npz(path: Path, stream: IO[bytes]) -> dict[str, Array]:
    arrays, name = {}, ""
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            _check_members(path, members, os.fstat(stream.fileno()).st_size)
            for member in members:
                name = member.filename.removesuffix(".npy")
                arrays[name] = _member(path, name, archive.open(member), member.file_size)
    except (WeightsError, OSError):
        raise
    except Exception as error:  # zipfile, zlib, ast and np.dtype know a dozen for damaged files
        what = "cannot be read" if name else "is no .npz file"
        raise WeightsError(path, f"{what}: {str(error) or type(error).__name__}", name) from error
    return arrays


def _check_members(path: Path, members: list[zipfile.ZipInfo], size: int) -> None:
    """That no member claims what its bytes cannot hold, and all together no more than the file."""
    names = set()
    for member in members:
        name = member.filename.removesuffix(".npy")
        ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE_RATIO}.get(member.compress_type)
        if name == member.filename or name in names:
            raise WeightsError(path, "is there twice" if name in names else "is no .npy", name)
        if ratio is None or member.flag_bits & 1:
            raise WeightsError(path, "is neither stored nor deflated, or is encrypted", name)
        if member.file_size > ratio * member.compress_size:
            raise WeightsError(
                path, f"would be {member.file_size} bytes, which {member.compress_size} cannot hold", name
            )
        names.add(name)
    total = sum(member.compress_size for member in members)
    if total > size:
        raise WeightsError(path, f"its members would take {total} bytes, but the file has {size}")


def _member(path: Path, name: str, opened: IO[bytes], size: int) -> Array:
    with opened:
        data = opened.read(size)  # with its size: what is larger than it says ends there
    if len(data) != size:
        raise WeightsError(path, f"has {len(data)} bytes in place of {size}", name)
    stream = io.BytesIO(data)
    shape, fortran, dtype = _npy_header(stream)
    try:
        dtypes.of(dtype)
    except ConvolverError as error:
        hint = "; NumPy's files forget bfloat16 and float8, .safetensors keeps them" if dtype.kind == "V" else ""
        raise WeightsError(path, f"{error.message}{hint}", name) from error
    needed, there = prod(shape) * dtype.itemsize, size - stream.tell()
    if not _is_shape(shape, dtype) or needed != there:
        raise WeightsError(path, f"shape {shown(shape)} takes {shown(needed)} bytes, but there are {there}", name)
    flat = np.frombuffer(data, dtype, offset=stream.tell())
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def _npy_header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether the order is Fortran's, dtype; the stream then stands at the data."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of .npy holds records alone")
