"""Prints what pyproject.toml asks for, one requirement a line: `bare` is the package itself, other words are extras.

usage: python3 tools/requirements.py bare server pictures
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(part: str) -> list[str]:
    """The requirements of one part; KeyError for an extra that pyproject.toml does not have."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    listed: list[str] = project["dependencies"] if part == "bare" else project["optional-dependencies"][part]
    return listed


if __name__ == "__main__":
    print(*(line for part in sys.argv[1:] for line in requirements(part)), sep="\n")
