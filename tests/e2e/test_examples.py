"""examples/ as a user runs them, and the code of docs/training.md."""

from __future__ import annotations

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
TRAINING = re.findall(
    r"^```python\n(.*?)^```$", (REPOSITORY / "docs/training.md").read_text(), re.MULTILINE | re.DOTALL
)


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
    for block in TRAINING:
        exec(block, {})  # noqa: S102 - the repository's own page
    said = capsys.readouterr().out.strip()
    assert said == "input.shape[1] input has 2 channels, but weight (4, 3, 3, 3) with groups=1 expects 3"
    assert f"prints `{said}`" in (REPOSITORY / "docs/training.md").read_text()
