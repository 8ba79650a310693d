"""Files that appear whole or not at all."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from convolver.client.pictures.errors import PictureError

if TYPE_CHECKING:
    from pathlib import Path


def check_folder(path: Path) -> None:
    """Raise PictureError unless `path` is a file in a folder that exists, or could become one."""
    if not path.parent.is_dir():
        raise PictureError(path, f"there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise PictureError(path, "is no file that can be replaced")


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` under a temporary name in the same folder, then rename it to `path`: nobody ever sees a part of it.

    A link is followed, a file that is there already keeps its permissions.

    Raises:
        PictureError: The system refuses; then `path` is as it was, and nothing else is left.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(data)
        if target.exists():
            temporary.chmod(target.stat().st_mode)
        temporary.replace(target)
    except OSError as error:
        raise PictureError(path, error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)
