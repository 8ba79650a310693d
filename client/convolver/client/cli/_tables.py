"""What commands print: JSON, or tables for people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

PIPED_WIDTH = 160
"""Characters of a line where no terminal says how many it has."""


def show(told: dict[str, Any], *, as_json: bool) -> None:
    """One line for each name."""
    if as_json:
        typer.echo(json.dumps(told))
        return
    from rich.table import Table

    table = Table("", "", show_header=False)
    for name, value in told.items():
        table.add_row(name, _cell(value))
    _console().print(table)


def show_rows(rows: Sequence[dict[str, Any]]) -> None:
    """One line for each row, all of which have the same names; numbers stand to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name, value in rows[0].items():
        table.add_column(name, justify="left" if isinstance(value, str) else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell, row.values()))
    _console().print(table)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _console() -> Console:
    from rich.console import Console

    console = Console(markup=False)
    return console if console.is_terminal else Console(markup=False, width=PIPED_WIDTH)
