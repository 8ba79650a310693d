"""`python -m convolver.client.cli` is the command `convolver`."""

from __future__ import annotations

from convolver.client.cli import main

main()
