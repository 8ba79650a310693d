"""A plugin of pytest, for the processes that look for a planted bug."""

from __future__ import annotations

import sys

import hypothesis
import pytest


def pytest_configure() -> None:
    """That a test fails is what is asked; the smallest example of it would take longer than all else."""
    phases = hypothesis.Phase.explicit, hypothesis.Phase.generate
    hypothesis.settings.register_profile("unshrunk", derandomize=True, deadline=None, phases=phases)
    hypothesis.settings.load_profile("unshrunk")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Where the core came from."""
    for name, module in sys.modules.items():
        if name.startswith("convolver.core"):
            terminalreporter.write_line(f"loaded {module.__file__}")
