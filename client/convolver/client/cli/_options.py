"""The options that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from convolver.client import Client

Address = Annotated[
    str | None,
    typer.Option(
        help="host:port, unix:/path or dns:///host:port; several host:port with commas between. Without it and without "
        "CONVOLVER_ADDRESS, the command starts a server of its own.",
    ),
]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds that one call may take.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_client(address: str | None, timeout: float) -> Client:
    """A client of the service at an address, or of an embedded one; an address that is none is wrong usage."""
    from convolver.client import Client

    try:
        client = Client(address, timeout=timeout)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--address'") from error
    _ = client.address  # starts the embedded server now, so that no call's time counts it
    return client
