"""examples/ as a user runs them, and the code of docs/training.md and docs/layers.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import RunningServer

REPOSITORY = Path(__file__).parent.parent.parent


def blocks(page: str, language: str = "python") -> list[str]:
    """The code of a page of docs/."""
    text = (REPOSITORY / "docs" / page).read_text()
    found: list[str] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return found


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_edge_detector_is_learnt_in_ten_epochs(server: RunningServer, seed: int) -> None:
    pytest.importorskip("torch", reason="torch is not installed, and the example learns with it")
    ran = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples/learn_edges.py"), f"--seed={seed}"],
        env=os.environ | {"CONVOLVER_ADDRESS": server.address},
        check=True,
        capture_output=True,
        text=True,
    )
    losses = [float(loss) for loss in re.findall(r"^epoch +\d+, loss (\S+)$", ran.stdout, re.MULTILINE)]
    assert len(losses) == 11
    assert all(later < earlier for earlier, later in pairwise(losses))
    assert losses[0] > 50 * losses[-1]
    kernel = [float(value) for value in re.findall(r"-?\d\.\d+", ran.stdout.splitlines()[-1])]
    assert kernel == pytest.approx([1, -1], abs=0.1)


def test_the_code_of_the_training_page_runs(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed, and most of the page is about it")
    monkeypatch.setenv("CONVOLVER_ADDRESS", server.address)
    for block in blocks("training.md"):
        exec(block, {})  # noqa: S102 - the repository's own page
    said = capsys.readouterr().out.strip()
    assert said == "input.shape[1] input has 2 channels, but weight (4, 3, 3, 3) with groups=1 expects 3"
    assert f"prints `{said}`" in (REPOSITORY / "docs/training.md").read_text()


def test_the_code_of_the_page_about_layers_runs_and_prints_what_it_says(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="torch is not installed, and the page is about it too")
    monkeypatch.setenv("CONVOLVER_ADDRESS", server.address)
    said = []
    for block in blocks("layers.md"):
        exec(block, {})  # noqa: S102 - the repository's own page
        said.append(capsys.readouterr().out.strip())
    of_layer, of_asyncio, of_stack, of_torch = said
    assert re.fullmatch(r"sha256:[0-9a-f]{8} \d+", of_layer)
    assert of_asyncio == "21 (1, 4, 32, 32) (1, 4, 16, 16)"
    assert of_stack in (REPOSITORY / "docs/layers.md").read_text()
    assert of_torch == "34"


def test_the_stack_file_of_the_page_about_layers_is_planned(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "lenet.toml").write_text(blocks("layers.md", "toml")[0])
    ran = subprocess.run(
        [sys.executable, "-m", "convolver.client.cli", "plan", "lenet.toml", "--json", f"--address={server.address}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert [layer["output"] for layer in json.loads(ran.stdout)["layers"]] == [[1, 6, 28, 28], [1, 6, 14, 14]]
