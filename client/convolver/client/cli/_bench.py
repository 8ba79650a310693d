"""`convolver bench`: how fast a server is, for whoever stands here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from convolver.client.bench._workloads import CALLERS, IN_FLIGHT, WORKLOADS, Weights
from convolver.client.cli import _numbers, _options
from convolver.client.cli._options import open_client
from convolver.client.cli._tables import show_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from convolver.client import Client
    from convolver.client.bench import Cell, Meter

_ALL_CALLERS = ",".join(map(str, CALLERS))
MOST_CALLERS = 1024
"""Each is a thread of this process."""

Address = Annotated[
    str | None,
    typer.Argument(
        metavar="[ADDRESS]",
        help="As --address of the other commands: without it and without CONVOLVER_ADDRESS, the command starts a "
        "server of its own.",
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--workload", metavar="NAME", help=f"May be repeated; all by default: {', '.join(WORKLOADS)}."),
]
Callers = Annotated[str, typer.Option(metavar="NUMBERS", help="How many call at a time, one after the other.")]
Seconds = Annotated[float, typer.Option(min=0.0, max=3600.0, help="Of each measurement; at least one call is made.")]
Layers = Annotated[
    bool | None,
    typer.Option("--layers/--inline", help="Only with weights that stay, or only with weights that travel each time."),
]
Target = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to a file, too.")]
Metrics = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The server's /metrics: its CPU time and memory where it is not on this host."),
]


class _Asked(NamedTuple):
    """What is to be measured."""

    workloads: list[str]
    callers: tuple[int, ...]
    ways: tuple[Weights, ...]
    seconds: float


def bench(
    address: Address = None,
    *,
    workload: Names = None,
    callers: Callers = _ALL_CALLERS,
    seconds: Seconds = 2.0,
    layers: Layers = None,
    target: Target = None,
    metrics: Metrics = None,
    timeout: _options.Timeout = 60.0,
) -> None:
    """Measure a server: times, throughput, and what both ends use of processor and memory. Errors are counted and
    shown; the exit status is 1 where no request succeeded.
    """
    from convolver.client.cli._frames import done_apart
    from convolver.client.pictures._files import check_folder, replace_file

    asked = _Asked(_names(workload), _numbers_of(callers), _ways(layers), seconds)
    if target is not None:
        check_folder(target)
    with open_client(address, timeout) as client:
        versions = client.info().versions
        rows = done_apart(client, lambda: list(_measured(client, asked, _meter(client.address, metrics))))
    _print(rows)
    if target is not None:
        told = {
            "versions": versions,
            "seconds": seconds,
            "cells": [{"weights": way, **asdict(cell)} for way, cell in rows],
        }
        replace_file(target, f"{json.dumps(told, indent=2)}\n".encode())
    raise typer.Exit(not any(cell.requests for _, cell in rows))


def _names(given: list[str] | None) -> list[str]:
    for name in given or ():
        if name not in WORKLOADS:
            known = ", ".join(WORKLOADS)
            raise typer.BadParameter(f"{name!r:.80} is no workload; there are {known}", param_hint="'--workload'")
    return given or list(WORKLOADS)


def _numbers_of(text: str) -> tuple[int, ...]:
    numbers = _numbers.shape(text, "--callers")
    if not all(1 <= number <= MOST_CALLERS for number in numbers):
        raise typer.BadParameter(f"{text!r:.80} is not between 1 and {MOST_CALLERS}", param_hint="'--callers'")
    return numbers


def _ways(layers: bool | None) -> tuple[Weights, ...]:  # noqa: FBT001  # typer hands it over so
    return ("layers", "inline") if layers is None else ("layers",) if layers else ("inline",)


def _meter(address: str, metrics: str | None) -> Meter:
    from convolver.client.bench import Exposition, Processes, listeners

    return Processes(listeners(address)) if metrics is None else Exposition(metrics)


def _measured(client: Client, asked: _Asked, server: Meter) -> Iterator[tuple[Weights, Cell]]:
    from rich.console import Console

    from convolver.client.bench._service import cells

    with Console(stderr=True).status("") as status:
        for name in asked.workloads:
            for way in asked.ways:
                status.update(f"{name}, {way}")
                for cell in cells(client, WORKLOADS[name], way, asked.callers, asked.seconds, server):
                    yield way, cell


def _print(rows: Sequence[tuple[Weights, Cell]]) -> None:
    from convolver.client.bench import row

    show_rows([{"weights": way, **row(cell)} for way, cell in rows])
    for way, cell in rows:
        for error, count in cell.errors.items():
            typer.echo(f"{cell.workload}, {way}, {cell.callers} callers: {count} times {error}")
    if any(cell.callers < max(cell.asked) for _, cell in rows):
        typer.echo(
            f"Fewer callers than asked for ran where they would have {IN_FLIGHT / 2**30:g} GiB under way together."
        )
