"""Settings that are loaded, or refused, whatever variables this process has."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from convolver.server.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable


def forget_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes what belongs to the server out of the environment."""
    for name in [name for name in os.environ if name.upper().startswith("CONVOLVER_")]:
        monkeypatch.delenv(name)


def refusing(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Loads settings that must be refused with exit code 2, returns what is then on standard error."""

    def refuse(*argv: str) -> str:
        with pytest.raises(SystemExit) as exit_:
            load(argv)
        assert exit_.value.code == 2
        return capsys.readouterr().err

    return refuse
