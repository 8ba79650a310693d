"""What `convolver filter` does with files and folders."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress

from convolver.client.pictures import (
    FilterError,
    PictureError,
    Recorder,
    filter_array,
    filter_picture,
    read_source,
    suited,
    write_source,
)
from convolver.client.pictures._files import check_folder
from convolver.client.pictures._formats import READABLE, WRITABLE
from convolver.core.errors import InvalidConvolution, LimitExceeded, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from convolver.client import Client
    from convolver.client.pictures import Convolver, Filter
    from convolver.client.pictures._formats import Source


def filter_all(source: Path, target: Path, how: Filter, connect: Callable[[], Client]) -> None:
    """Filter a file into a file, or a folder's files into a folder. What does not fit is refused before any work.

    Args:
        source: A file or a folder.
        target: A file, or a folder for files of the same names.
        how: What to do.
        connect: Makes the client, once there is something for it to do.

    Raises:
        PictureError: A file cannot be read or written, or a folder is missing.
        typer.Exit: With status 1, after the files of a folder that failed were reported.
        ConvolverError: The service refuses or cannot be reached.
    """
    if source.is_dir():
        _filter_folder(source, target, how, connect)
        return
    path = target / source.name if target.is_dir() else target
    if path.suffix.lower() not in WRITABLE:
        raise typer.BadParameter(f"the suffix of {path} must be one of {' '.join(WRITABLE)}", param_hint="'OUT'")
    check_folder(path)
    prepared = suited(read_source(source), path)
    with connect() as client:
        recorder = Recorder(client)
        result = _filtered(recorder, source, prepared, how)
    write_source(path, result)
    typer.echo(f"{path}: {_told(result)}; {how.kernel.name}, {_size(how.kernel.shape)}; {recorder}")


def _filter_folder(source: Path, target: Path, how: Filter, connect: Callable[[], Client]) -> None:
    if not target.is_dir() and (target.exists() or not target.absolute().parent.is_dir()):
        raise PictureError(
            target, f"{source} is a folder, so this must be one too, or a new one in a folder that exists"
        )
    files = sorted(file for file in source.iterdir() if file.suffix.lower() in READABLE and file.is_file())
    if not files:
        raise PictureError(source, f"holds no file that ends in {' '.join(READABLE)}")
    console = Console(stderr=True)
    with connect() as client, Progress(console=console, disable=not console.is_terminal) as progress:
        failures = _filter_each(client, progress.track(files, description="Filtering"), target, how, console)
    typer.echo(f"{len(files) - failures} of {len(files)} files filtered into {target}")
    if failures:
        raise typer.Exit(1)


def _filter_each(client: Client, files: Iterable[Path], target: Path, how: Filter, console: Console) -> int:
    """Filter the files that can be, report the others, and count those."""
    failures = 0
    for file in files:
        try:
            path = target / file.name
            result = _filtered(client, file, suited(read_source(file), path), how)
            target.mkdir(exist_ok=True)
            write_source(path, result)
        except PictureError as error:
            failures += 1
            console.print(
                f"convolver: {' '.join(error.message.split())}", markup=False, highlight=False, soft_wrap=True
            )
    return failures


def _filtered(convolver: Convolver, path: Path, source: Source, how: Filter) -> Source:
    """The result. What this file alone is to blame for becomes a PictureError that names it."""
    try:
        if isinstance(source, np.ndarray):
            return filter_array(convolver, source, how)
        return filter_picture(convolver, source, how)
    except (FilterError, InvalidConvolution, LimitExceeded, Unsupported) as error:
        raise PictureError(path, error.message) from error


def _told(source: Source) -> str:
    return f"{_size(source.shape)}, {source.dtype}" if isinstance(source, np.ndarray) else str(source)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
