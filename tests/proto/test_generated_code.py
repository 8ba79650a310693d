"""The generated code is committed beside its .proto files; here it is generated again and compared."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent.parent


def generated_files(root: Path) -> dict[str, str]:
    return {path.relative_to(root).as_posix(): path.read_text() for path in root.glob("convolver/v1/*_pb2*.py*")}


@pytest.fixture(scope="module")
def committed() -> dict[str, str]:
    return generated_files(REPOSITORY / "proto")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("generated")
    environment = os.environ | {"PYTHON": sys.executable}
    subprocess.run([REPOSITORY / "tools" / "generate.sh", folder], env=environment, check=True)
    return generated_files(folder)


def test_every_proto_file_has_its_generated_code_and_nothing_else_is_there(
    committed: dict[str, str], generated: dict[str, str]
) -> None:
    assert sorted(committed) == sorted(generated)


def test_the_committed_code_is_what_the_compiler_writes_now(
    committed: dict[str, str], generated: dict[str, str]
) -> None:
    assert [name for name, text in generated.items() if committed.get(name) != text] == [], "run `make proto`"
