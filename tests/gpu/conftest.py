"""Runs where there is a CUDA device, by `make gpu-check`: with that machine's own Python, which needs torch, NumPy,
ml_dtypes, protobuf, hypothesis and pytest alone.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a device nothing of this folder can run."""
    if _devices():
        return
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.skip(reason="torch finds no CUDA device here"))


def _devices() -> int:
    if not find_spec("torch"):
        return 0
    import torch

    return torch.cuda.device_count()
