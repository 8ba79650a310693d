"""Arrays in `.npy` files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from convolver.client.pictures.errors import PictureError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def read_array(path: Path) -> NDArray[Any]:
    """Read a `.npy` file of any shape, in this machine's byte order.

    Pickled objects are refused, and so is a header that promises more than the file holds.

    Raises:
        PictureError: The file is missing, truncated, or no such file.
    """
    try:
        array = np.array(np.lib.format.open_memmap(path, mode="r"))
    except OSError as error:
        raise PictureError(path, error.strerror or str(error)) from error
    except (ValueError, EOFError, OverflowError) as error:
        raise PictureError(path, f"is no .npy file of numbers: {error}") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def encode_array(array: NDArray[Any]) -> bytes:
    """The bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
