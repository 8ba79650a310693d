"""Files of weights, made byte by byte, and what loading them leads to."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from convolver.client._weights import load_weights

if TYPE_CHECKING:
    from pathlib import Path


def safetensors(entries: dict[str, Any], data: bytes = b"", **more: Any) -> bytes:  # noqa: ANN401 - JSON
    header = json.dumps({**entries, **more}).encode()
    return struct.pack("<Q", len(header)) + header + data


def one(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def npz(**arrays: Any) -> bytes:  # noqa: ANN401 - arrays
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def compressed(**arrays: Any) -> bytes:  # noqa: ANN401 - arrays
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zipped(name: str, member: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, member)
    return buffer.getvalue()


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def outcome(path: Path) -> tuple[Exception | None, int]:
    """What was raised, and the largest number of bytes that Python and NumPy held at one time."""
    tracemalloc.start()
    try:
        load_weights(path)
    except Exception as error:  # noqa: BLE001 - which it is, is what the test asks
        return error, tracemalloc.get_traced_memory()[1]
    else:
        return None, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
