"""What is really loaded, read from sys.modules in a fresh process: import-linter counts imports in functions too."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HELP = """
from typer.testing import CliRunner
from convolver.client.cli import app
assert CliRunner().invoke(app, ["--help"]).exit_code == 0
"""


def modules_loaded_by(statement: str) -> set[str]:
    script = f"{statement}\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(json.loads(run.stdout))


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        ("import convolver.v1", {"grpc", "numpy"}),
        ("import convolver.core", {"grpc", "torch"}),
        ("import convolver.client", {"torch", "convolver.server", "pydantic", "PIL"}),
        ("import convolver.client.cli", {"grpc", "numpy", "torch", "convolver.server"}),
        (HELP, {"grpc", "numpy", "torch", "convolver.server"}),
    ],
)
def test_importing_loads_no_more_than_it_needs(statement: str, unwanted: set[str]) -> None:
    assert modules_loaded_by(statement) & unwanted == set()
