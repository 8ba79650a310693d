"""`convolver map`: the layers of a stack over many frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from convolver.client.cli import _options
from convolver.client.cli._options import open_client

if TYPE_CHECKING:
    from convolver.core.operation import Tensor
    from convolver.core.parameters import StackParameters

Stack = Annotated[
    Path, typer.Argument(metavar="STACK", help="A stack of layers, .toml or .json, whose weights are in a file.")
]
In = Annotated[Path, typer.Argument(metavar="IN", help="A .npy array: (frames, C, H, W); channels_last as the stack.")]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="The .npy file to write: an output for each frame.")]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="The stack's weights, .safetensors or .npz.")
]
Batch = Annotated[int, typer.Option(min=1, metavar="N", help="Frames that travel together, as a batch.")]
InFlight = Annotated[
    int,
    typer.Option(min=1, max=4096, metavar="N", help="Batches that are on their way at a time."),  # MOST_IN_FLIGHT
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar, though stderr be a terminal.")]
Algorithm = Annotated[Literal["auto", "direct", "fft"], typer.Option(help="How it is computed.")]
Backend = Annotated[str, typer.Option(help="Who computes: auto, reference, torch, torch:cuda...")]


def map_frames(  # noqa: PLR0913  # a command's options are its arguments
    stack: Stack,
    source: In,
    target: Out,
    *,
    weights: Weights = None,
    batch: Batch = 1,
    in_flight: InFlight = 16,
    no_progress: NoProgress = False,
    algorithm: Algorithm = "auto",
    backend: Backend = "auto",
    address: _options.Address = None,
    timeout: _options.Timeout = 60.0,
) -> None:
    """Run the layers of a stack over the frames of an array, of any size, over one stream: while one frame is computed,
    others travel, and the weights stay on the server.
    """
    from convolver.client.cli import _frames

    _frames.check_target(target, source)
    layers = _frames.read_layers(stack, weights)
    frames = _frames.open_frames(source, layers)
    how: StackParameters = {"algorithm": algorithm, "backend": backend}

    def work() -> Tensor:
        output = client.stack(layers, **how).plan((1, *frames.shape[1:]), frames.dtype.name).output
        held = client.stack([_frames.held(client, layer) for layer in layers], **how)
        outputs = held.map(_frames.batches(frames, batch), in_flight=in_flight)
        _frames.write_outputs(target, outputs, len(frames), output, progress=not no_progress)
        return output

    with open_client(address, timeout) as client:
        output = _frames.done_apart(client, work)
    typer.echo(f"{target}: {len(frames)} frames of {'x'.join(map(str, output.shape[1:]))}, {output.dtype}")
