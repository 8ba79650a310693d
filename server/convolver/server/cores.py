"""How many cores a process may use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP_QUOTAS = (
    (Path("/sys/fs/cgroup/cpu.max"),),
    (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
)
"""Files of control groups, version 2 and 1, that have a quota and the period it is for: `150000 100000` are one core
and a half, `max 100000` and `-1 100000` have no quota.
"""


def cores() -> int:
    """The cores that this process may run on or, if fewer, its container's quota of their time, rounded up."""
    written = [" ".join(path.read_text() for path in paths).split() for paths in _CGROUP_QUOTAS if _are_files(paths)]
    quotas = [-(-int(quota) // int(period)) for quota, period in written if quota.isdigit()]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def _are_files(paths: tuple[Path, ...]) -> bool:
    return all(path.is_file() for path in paths)
