"""The command `convolver`."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from convolver.client.cli._bench import bench
from convolver.client.cli._filter import filter_files
from convolver.client.cli._health import health
from convolver.client.cli._info import info
from convolver.client.cli._map import map_frames
from convolver.client.cli._plan import plan
from convolver.core.errors import ConvolverError

if TYPE_CHECKING:
    from collections.abc import Sequence

app = typer.Typer(
    name="convolver",
    help="Convolutions as a service: filter pictures, map stacks over frames, plan, ask how a server is, measure it.",
    epilog="Exit status: 2 if the command line is wrong by itself, 1 for whatever else went wrong.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("filter")(filter_files)
app.command("map")(map_frames)
app.command("plan")(plan)
app.command("info")(info)
app.command("health")(health)
app.command("bench")(bench)


def _show_version(asked: bool) -> None:  # noqa: FBT001  # typer hands it over so
    if asked:
        from importlib.metadata import version

        typer.echo(f"convolver {version('convolver')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Convolutions as a service: filter pictures, map stacks over frames, plan, ask how a server is, measure it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and exit: errors become one line on stderr, status 2 for usage and 1 for all else."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # gRPC tells of connections that end as they should
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was begun is cleaned up
    try:
        status = app(arguments, prog_name="convolver", standalone_mode=False)
    except typer.TyperException as error:
        status = _complain(error.format_message(), error.exit_code)
    except ConvolverError as error:
        where = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
        status = _complain(f"{where}{error.message}", 1)
    sys.exit(status)


def _complain(message: str, status: int) -> int:
    if message:  # without arguments there is only the help
        typer.echo(f"convolver: {' '.join(message.split())}", err=True)
    return status
