"""The virtual environment of PyTriton, made when it is first needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

PYTHON = Path("/usr/bin/python3")
"""Debian's: the wheel's Triton loads that interpreter's library, and pyenv's has none where it looks."""

REPOSITORY = Path(__file__).parent.parent.parent
FOLDER = REPOSITORY / ".venv" / "pytriton"
REQUIREMENTS = ("nvidia-pytriton==0.7.0", "tritonclient[grpc]==2.73.0", "torch==2.13.0")
SECONDS = 1200.0
"""That pip may take: torch's wheel with CUDA is large."""


class NotInstalled(Exception):
    """There is no PyTriton here; the text says why."""


LONGEST_TEXT = 500
"""Characters that are kept of what pip or venv say, from the end."""


def python() -> Path:
    """The interpreter of the environment. Raises NotInstalled."""
    found = FOLDER / "bin" / "python"
    if not (FOLDER / ".installed").exists():
        if not PYTHON.exists():
            raise NotInstalled(f"there is no {PYTHON}")
        try:
            _run(str(PYTHON), "-m", "venv", "--clear", str(FOLDER))
            _run(str(found), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *REQUIREMENTS)
        except NotInstalled:
            shutil.rmtree(FOLDER, ignore_errors=True)
            raise
        (FOLDER / ".installed").touch()
    return found


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.CalledProcessError as error:
        said = " ".join((error.stdout + error.stderr).split())[-LONGEST_TEXT:]
        raise NotInstalled(f"{error}: {said}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(str(error)) from error
