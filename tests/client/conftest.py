"""The command `convolver`, run in this process as its entry point runs it; and clients that share memory in the end."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import pytest

from convolver.client import _shared_memory_async, _shared_memory_sync
from convolver.client.cli import main


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    def complaint(self, status: int) -> str:
        """The one line on stderr of a command that ended with this status and said nothing else."""
        assert (self.status, self.out) == (status, "")
        assert self.err.startswith("convolver: ")
        assert self.err.count("\n") == 1
        return self.err


class Command(Protocol):
    def __call__(self, *arguments: object) -> Ran: ...


@pytest.fixture
def convolver(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command with these arguments, without an address in its environment."""
    monkeypatch.delenv("CONVOLVER_ADDRESS", raising=False)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # the tests' own process keeps its handlers

    def run(*arguments: object) -> Ran:
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        return Ran(int(left.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def patient_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offers of memory are waited for on a machine that pauses too: one that takes too long goes another way."""
    for module in (_shared_memory_sync, _shared_memory_async):
        monkeypatch.setattr(module, "HOLD_SECONDS", 30.0)
