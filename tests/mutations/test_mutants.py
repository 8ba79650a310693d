"""Plausible bugs, planted one at a time into a copy of the core: the test that is named with each must fail.

`convolver` is a namespace package over four roots, so the copy of the core's root that stands first on PYTHONPATH is
where convolver.core is found; the other parts come from where they are installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.mutations.mutants import MUTANTS, Mutant

pytestmark = pytest.mark.timeout(600)

REPOSITORY = Path(__file__).parents[2]
CORE = Path("convolver", "core")

NOT_A_BUG_BUT_A_TYPO = re.compile(
    r"^E +(AttributeError|ImportError|KeyError|NameError|SyntaxError|TypeError)", re.MULTILINE
)


class Run(NamedTuple):
    """How a process of pytest ended, what it wrote, and the files of convolver.core that it had loaded."""

    code: int
    output: str
    loaded: set[Path]


def copied(folder: Path) -> Path:
    """A root with a copy of convolver.core."""
    shutil.copytree(REPOSITORY / "core" / CORE, folder / CORE, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def planted(mutant: Mutant, root: Path) -> Path:
    """The file in the copy at `root`, with the bug in it."""
    file = root / CORE / mutant.file
    text = file.read_text()
    assert text.count(mutant.old) == 1, moved_on(mutant)
    file.write_text(text.replace(mutant.old, mutant.new))
    return file


def moved_on(mutant: Mutant) -> str:
    return (
        f"{mutant.file} has moved on: write {mutant.name!r} anew, for what it replaces is not there once:\n{mutant.old}"
    )


def run(root: Path, tests: Iterable[str]) -> Run:
    """These tests, on the core at `root`."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "tests.mutations.observer"]
    command = [sys.executable, "-m", "pytest", *options, *(f"tests/core/{test}" for test in tests)]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), done.stdout + done.stderr
    loaded = re.findall(r"^loaded (.+)$", done.stdout, re.MULTILINE)
    return Run(done.returncode, done.stdout, {Path(file) for file in loaded})


def as_parameter(mutant: Mutant) -> object:
    without = mutant.needs_torch and not find_spec("torch")
    return pytest.param(mutant, id=mutant.name, marks=pytest.mark.skipif(without, reason="no torch"))


@pytest.mark.parametrize("mutant", [as_parameter(mutant) for mutant in MUTANTS])
def test_a_planted_bug_is_found(mutant: Mutant, tmp_path: Path) -> None:
    file = planted(mutant, copied(tmp_path))
    done = run(tmp_path, [mutant.test])
    assert file in done.loaded
    assert done.code == pytest.ExitCode.TESTS_FAILED, f"nobody found {mutant.name!r} ({mutant.why}):\n{done.output}"
    assert re.search(r"\b1 failed\b", done.output), done.output  # an error of collection or of a fixture is no finding
    assert not NOT_A_BUG_BUT_A_TYPO.search(done.output), done.output


def test_without_a_bug_the_same_tests_pass(tmp_path: Path) -> None:
    done = run(copied(tmp_path), sorted({mutant.test for mutant in MUTANTS}))
    assert done.code == pytest.ExitCode.OK, done.output
    assert {file for file in done.loaded if not file.is_relative_to(tmp_path)} == set()


def test_what_the_bugs_replace_stands_once_in_todays_source() -> None:
    for mutant in MUTANTS:
        text = (REPOSITORY / "core" / CORE / mutant.file).read_text()
        assert text.count(mutant.old) == 1, moved_on(mutant)
