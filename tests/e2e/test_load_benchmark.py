"""The benchmark of many callers runs, and writes what it found."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from benchmarks import load

if TYPE_CHECKING:
    from pathlib import Path


def test_it_measures_batches_overload_and_small_calls_beside_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("h2load") is None:
        pytest.skip("h2load is not installed: there is no load")
    small = load.Work((1, 64, 28, 28), (64, 64, 3, 3), 1)
    monkeypatch.setattr(load, "BATCHED", {"small": small})
    monkeypatch.setattr(load, "BIG", small)
    monkeypatch.setattr(load, "OVERLOADS", {"twice": load.Flood(2, 8, ("--max-concurrent-streams=20",))})
    load.main(["--seconds", "1", "--rounds", "1", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "load.json").read_text())
    assert found["batching"]["small"]["alone"] > 0
    assert found["overload"]["twice"]["goodput, a second"] > 0
    assert found["mixed"]["tiny beside p99, s"] > 0
    assert "64 callers" in (tmp_path / "load.md").read_text()
