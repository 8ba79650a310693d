"""`python -m benchmarks.shapes`: a short run of it, and what it makes of figures."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from benchmarks.shapes import BOUNDS, CAPACITY, drawn, growth, main, medians, points

if TYPE_CHECKING:
    from pathlib import Path


def test_no_shape_comes_twice_and_every_rank_comes() -> None:
    works = drawn(1000)
    assert len(set(works)) == 1000
    assert {len(work.input) - 2 for work in works} == {1, 2, 3}
    assert {work.groups > 1 for work in works} == {False, True}


def test_growth_is_that_of_the_last_fifth() -> None:
    assert points(2500) == [1, *range(250, 2501, 250)]
    flat_at_the_end = medians([100] * 1750 + [150] * 750)
    assert flat_at_the_end == [100] * 8 + [150] * 3
    assert growth(flat_at_the_end) == 0.0
    assert growth(medians([100] * 2000 + [150] * 500)) == 0.5


def test_a_short_run_measures_servers_with_both_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch", reason="torch is not installed: its servers are what is measured")
    monkeypatch.setenv(CAPACITY, "1")
    main(["--shapes=20", "--rounds=1", "--backend=torch", f"--out={tmp_path}"])
    assert CAPACITY not in os.environ  # so that the servers have set it themselves
    told = json.loads((tmp_path / "shapes.json").read_text())
    assert told["shapes"] == points(20)
    assert {bound: len(resident) for bound, resident in told["torch"]["resident"].items()} == dict.fromkeys(BOUNDS, 11)
    assert told["torch"]["computed"] == {bound: {"torch:cpu": 20} for bound in BOUNDS}
    assert "torch, as shipped" in (tmp_path / "shapes.md").read_text()
