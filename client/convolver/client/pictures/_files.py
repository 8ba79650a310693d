"""Files that appear whole or not at all."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from convolver.client.pictures.errors import PictureError
from convolver.core.errors import ConvolverError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def check_folder(path: Path) -> None:
    """Raise PictureError unless `path` is a file in a folder that exists, or could become one."""
    if not path.parent.is_dir():
        raise PictureError(path, f"there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise PictureError(path, "is no file that can be replaced")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file in the folder of `path`, to be written piece by piece, that takes its place in the end.

    A link is followed, a file that is there already keeps its permissions.

    Raises PictureError where the system refuses. After any error `path` is as it was, and nothing else is left.
    """
    target = path.resolve()
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
        if target.exists():
            temporary.chmod(target.stat().st_mode)
        temporary.replace(target)
    except ConvolverError:
        raise  # some of which are errors of the system too
    except OSError as error:
        raise PictureError(path, error.strerror or str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to a file that is there whole or not at all, as `replacing`, and raises what that raises."""
    with replacing(path) as file:
        file.write(data)
