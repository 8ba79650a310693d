"""How many cores a process may use, and that the server has as many threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from convolver.server.cores import cores
from convolver.server.settings import load


@pytest.mark.parametrize(
    ("files", "allowed"),
    [
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "1000 1000000"}, 1),
        ({"cpu.max": "9900000 100000"}, 64),
        ({"cpu.cfs_quota_us": "150000\n", "cpu.cfs_period_us": "50000\n"}, 3),
        ({"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.cfs_quota_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_a_containers_quota_of_time_counts_as_so_many_cores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], allowed: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    v2, quota, period = (tmp_path / name for name in ("cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us"))
    monkeypatch.setattr("convolver.server.cores._CGROUP_QUOTAS", ((v2,), (quota, period)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert load([]).threads == allowed


def test_zero_threads_are_one_for_each_core() -> None:
    assert load(["--threads", "0"]).threads == cores()
