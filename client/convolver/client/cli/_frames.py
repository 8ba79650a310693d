"""What `convolver map` does with files: frames and weights in, outputs out, none of them ever whole in memory."""

from __future__ import annotations

import mmap
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TimeRemainingColumn
from rich.text import Text

from convolver.client import Conv
from convolver.client._stack_files import load_stack
from convolver.client.pictures._files import check_folder, replacing
from convolver.client.pictures.errors import PictureError
from convolver.core import dtypes
from convolver.core.errors import InvalidConvolution
from convolver.core.tensors import to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from pathlib import Path

    from rich.progress import Task

    from convolver.client import Client, Pool
    from convolver.client._layers_sync import Layer
    from convolver.core.operation import Tensor
    from convolver.core.tensors import Array

T = TypeVar("T")

Frames = np.memmap[Any, np.dtype[Any]]
"""Of shape (frames, C, *S), or (frames, *S, C), in their file."""


def check_target(target: Path, source: Path) -> None:
    """Raise BadParameter unless `target` is a `.npy` file beside `source`, PictureError if it cannot be written."""
    if target.suffix.lower() != ".npy":
        raise typer.BadParameter(f"the suffix of {target} must be .npy", param_hint="'OUT'")
    check_folder(target)
    if target.exists() and source.exists() and target.samefile(source):
        raise typer.BadParameter(f"{target} is IN, which is read while OUT is written", param_hint="'OUT'")


def read_layers(stack: Path, weights: Path | None) -> list[Conv | Pool]:
    """The layers of a stack that can be run. Raises as `load_stack`, and InvalidConvolution for a weight that is but a
    shape.
    """
    layers = load_stack(stack, weights).layers
    for i, layer in enumerate(layers):
        if isinstance(layer, Conv) and layer.is_shape:
            text = f"layers[{i}].weight is the shape {layer.weight}: such a layer can be planned, not run"
            raise InvalidConvolution(f"{stack}: {text}", f"layers[{i}].weight")
    return layers


def held(client: Client, layer: Conv | Pool) -> Layer | Pool:
    """The layer, such that its weights stay on the server."""
    return client.layer(layer.weight, layer.bias, **layer.parameters) if isinstance(layer, Conv) else layer


def open_frames(path: Path, layers: Sequence[Conv | Pool]) -> Frames:
    """The array in a `.npy` file, of which nothing is read yet.

    Raises PictureError where there is none, of a type that no tensor has, or not of as many axes as the weights.
    """
    frames = _opened(path)
    try:
        dtypes.of(frames.dtype, "it")
    except InvalidConvolution as error:
        more = "; bfloat16 and float8 are no types of .npy files" if frames.dtype.kind == "V" else ""
        raise PictureError(path, f"{error.message}{more}") from error
    expected = next((layer.weight.ndim for layer in layers if isinstance(layer, Conv)), frames.ndim)
    if frames.ndim != expected or not frames.ndim:
        raise PictureError(
            path, f"has shape {frames.shape}; the stack takes {expected or 3} axes: frames, channels and their sizes"
        )
    return frames


def _opened(path: Path) -> Frames:
    try:
        with np.errstate(over="ignore"):  # of a size that no file has, of which NumPy warns
            return cast("Frames", np.lib.format.open_memmap(path, mode="r"))
    except OSError as error:
        raise PictureError(path, error.strerror or str(error)) from error
    except (ValueError, TypeError, EOFError, OverflowError) as error:
        raise PictureError(path, f"is no .npy file of numbers: {error}") from error


def batches(frames: Frames, size: int) -> Iterator[Array]:
    """The frames in their order, `size` at a time; the last ones may be fewer."""
    mapped = cast("mmap.mmap", frames.base)
    for start in range(0, len(frames), size):
        yield frames[start : start + size]
        mapped.madvise(mmap.MADV_DONTNEED)  # pages that were read would count as memory of this process


def write_outputs(path: Path, outputs: Generator[Array], count: int, output: Tensor, *, progress: bool) -> None:
    """Write batches of outputs, each of which is as `output`, of `count` frames in all, to a `.npy` file that is there
    whole or not at all. `progress` shows a bar on stderr if that is a terminal.

    Raises PictureError where the system refuses, and whatever `outputs` raises.
    """
    bar = Progress(
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not (progress and sys.stderr.isatty()),
        expand=True,
    )
    with closing(outputs), replacing(path) as file, bar:
        task = bar.add_task("", total=count)
        dtype = np.lib.format.dtype_to_descr(dtypes.named(output.dtype).numpy)
        header = {"descr": dtype, "fortran_order": False, "shape": (count, *output.shape[1:])}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in outputs:
            file.write(to_bytes(batch))
            bar.advance(task, len(batch))


def done_apart(client: Client, work: Callable[[], T]) -> T:
    """What `work` with the client gives, in a thread of its own. An interruption closes the client, which ends it.

    Raised inside of gRPC, KeyboardInterrupt may leave a lock of its channel held for ever (threading.Condition's
    `__enter__` and `__exit__` are no single steps): this thread, where signals arrive, stays outside.
    """
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(work)
        try:
            return result.result()
        except BaseException:
            client.close()
            raise


class _Rate(ProgressColumn):
    """Frames per second."""

    def render(self, task: Task) -> Text:
        """Nothing until there are some."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.4g} frames/s" if speed else "")
