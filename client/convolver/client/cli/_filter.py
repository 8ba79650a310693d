"""`convolver filter`: one file, or all of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from convolver.client.cli import _options
from convolver.client.cli._options import open_client
from convolver.client.pictures._choices import PaddingMode, PicturePadding, Range
from convolver.client.pictures.errors import KernelError

if TYPE_CHECKING:
    from convolver.client.pictures import Kernel
    from convolver.client.pictures._choices import SpatialDimensions

In = Annotated[Path, typer.Argument(metavar="IN", help="A picture, a .npy array, or a folder of them.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, or a folder; its suffix says the format.")]
KernelText = Annotated[
    str,
    typer.Option(
        "--kernel",
        "-k",
        help="A name: identity, box:size=3, gaussian:sigma=1, sharpen, unsharp:sigma=2,amount=1, emboss, laplacian, "
        "log:sigma=1.4, or sobel, scharr, prewitt, each also -x, -y, -z; rows: '1 0 -1; 2 0 -2; 1 0 -1'; "
        "JSON: '[[1, 0], [0, -1]]'; a .npy or .json file.",
    ),
]
RangeOption = Annotated[
    Range | None,
    typer.Option(help="How results become brightness. Default: what suits the kernel; float samples stay as computed."),
]
Padding = Annotated[PicturePadding, typer.Option(help="same keeps the size, valid shrinks, full extends it.")]
Mode = Annotated[PaddingMode, typer.Option(help="What lies beyond the edge.")]
Value = Annotated[float | None, typer.Option(help="What lies there with --padding-mode constant, in samples.")]
Flip = Annotated[bool, typer.Option("--flip", help="True convolution: turn the kernel by 180 degrees first.")]
Dims = Annotated[
    int | None, typer.Option(min=2, max=3, help="Dimensions of a named kernel: 2 page by page, 3 the volume.")
]
Backend = Annotated[str, typer.Option(help="Who computes: auto, reference, torch, torch:cuda...")]


def filter_files(  # noqa: PLR0913  # a command's options are its arguments
    source: In,
    target: Out,
    *,
    kernel: KernelText,
    range: RangeOption = None,  # noqa: A002  # the option's name
    padding: Padding = "same",
    padding_mode: Mode = "reflect",
    padding_value: Value = None,
    flip: Flip = False,
    dims: Dims = None,
    backend: Backend = "auto",
    address: _options.Address = None,
    timeout: _options.Timeout = 60.0,
) -> None:
    """Filter a picture, each channel on its own, alpha kept; or every page of a TIFF; an array; a whole folder.

    Kernels are applied as cross-correlation, as in deep learning: sobel-x is positive where brightness grows to the
    right. The bit depth stays.
    """
    if padding_value is not None and padding_mode != "constant":
        raise typer.BadParameter("it needs --padding-mode constant", param_hint="'--padding-value'")
    from convolver.client.cli._files import filter_all
    from convolver.client.pictures import Filter

    how = Filter(_kernel(kernel, dims), range, padding, padding_mode, padding_value or 0.0, flip, backend)
    filter_all(source, target, how, lambda: open_client(address, timeout))


def _kernel(text: str, dims: int | None) -> Kernel:
    """The kernel of `--kernel`. A file's content is no matter of usage, all else is."""
    from convolver.client.pictures import parse_kernel, read_kernel

    ndim = cast("SpatialDimensions", dims or 2)
    try:
        is_file = text.lower().endswith((".npy", ".json"))
        kernel = read_kernel(Path(text)) if is_file else parse_kernel(text, ndim)
    except KernelError as error:
        if is_file:
            raise
        raise typer.BadParameter(error.message, param_hint="'--kernel'") from error
    if dims not in (None, len(kernel.shape)):
        raise typer.BadParameter(f"the kernel is {len(kernel.shape)}-D, shape {kernel.shape}", param_hint="'--dims'")
    return kernel
