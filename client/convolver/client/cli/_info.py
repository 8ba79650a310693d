"""`convolver info`: what a server is and may."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

from convolver.client.cli import _options
from convolver.client.cli._options import open_client

if TYPE_CHECKING:
    from convolver.client import Info


def info(
    *, as_json: _options.AsJson = False, address: _options.Address = None, timeout: _options.Timeout = 60.0
) -> None:
    """Say what a server is: its versions, back ends, devices, types and limits, and whether it shares memory."""
    with open_client(address, timeout) as client:
        told = _told(client.info())
    if as_json:
        typer.echo(json.dumps(told))
    else:
        _print(told)


def _told(info: Info) -> dict[str, Any]:
    backends = [
        {
            "name": one.name,
            "device": one.device,
            "threads": one.threads,
            "memory_bytes": one.memory_bytes,
            "dtypes": sorted(one.dtypes),
            "algorithms": list(one.algorithms),
        }
        for one in info.backends
    ]
    return {"versions": info.versions, "backends": backends, "limits": info.limits, "shared_memory": info.shared_memory}


def _print(told: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", show_header=False, show_lines=True)
    for name, version in sorted(told["versions"].items()):
        table.add_row(name, version)
    for one in told["backends"]:
        does = f"{one['device']}, {one['threads']} threads, {' and '.join(one['algorithms'])}"
        table.add_row(f"back end {one['name']}", f"{does}\n{' '.join(one['dtypes'])}")
    table.add_row("shared memory", "offered" if told["shared_memory"] else "off")
    for name, limit in sorted(told["limits"].items()):
        table.add_row(f"limit {name}", f"{limit:,}")
    Console(markup=False).print(table)
