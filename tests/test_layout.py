"""The shape of the repository: one namespace package in four roots, small files, short functions, a whole wheel."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parent.parent
ROOTS = ("proto", "core", "client", "server")
PACKAGES = [REPOSITORY / root / "convolver" for root in ROOTS]
SOURCES = [path for package in PACKAGES for path in package.rglob("*.py") if "_pb2" not in path.name]
SCRIPTS = [
    path for folder in ("tests", "tools", "benchmarks", "examples") for path in (REPOSITORY / folder).rglob("*.py")
]


def function_lengths(path: Path) -> Iterator[tuple[str, int]]:
    """Each function's place and its lines from `def` to the last, the docstring not counted."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            place = f"{path.relative_to(REPOSITORY)}:{node.lineno} {node.name}"
            yield place, last_line(node) - node.lineno + 1 - docstring_lines(node)


def docstring_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return last_line(node.body[0]) - node.body[0].lineno + 1 if ast.get_docstring(node, clean=False) is not None else 0


def last_line(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def places(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(REPOSITORY)) for path in paths]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


def test_no_root_hides_the_other_parts_of_the_namespace_package() -> None:
    assert [package for package in PACKAGES if (package / "__init__.py").exists()] == []


@pytest.mark.parametrize(
    "part", ["proto/convolver/v1", "core/convolver/core", "client/convolver/client", "server/convolver/server"]
)
def test_every_part_says_that_it_is_typed(part: str) -> None:
    assert (REPOSITORY / part / "py.typed").exists()


def test_no_file_is_longer_than_300_lines() -> None:
    assert places([path for path in SOURCES + SCRIPTS if len(path.read_text().splitlines()) > 300]) == []


def test_no_function_is_longer_than_40_lines() -> None:
    lengths = [found for path in SOURCES + SCRIPTS for found in function_lengths(path)]
    assert [found for found in lengths if found[1] > 40] == []


def test_the_median_function_has_at_most_8_lines_and_the_95th_percentile_28() -> None:
    lengths = [length for path in SOURCES for _, length in function_lengths(path)]
    assert statistics.median(lengths) <= 8
    assert statistics.quantiles(lengths, n=20)[-1] <= 28


def test_the_wheel_holds_every_file_of_all_four_parts(wheel: zipfile.ZipFile) -> None:
    shipped = {".py", ".pyi", ".typed", ".proto"}
    sources = {
        path.relative_to(package.parent).as_posix()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.suffix in shipped
    }
    assert sources - set(wheel.namelist()) == set()


def test_the_wheel_installs_both_commands(wheel: zipfile.ZipFile) -> None:
    [entry_points] = [name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt")]
    commands = {line.partition(" = ")[0] for line in wheel.read(entry_points).decode().splitlines()}
    assert {"convolver", "convolver-server"} <= commands
