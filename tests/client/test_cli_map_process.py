"""`convolver map` as a process of its own: on a terminal, in little memory, interrupted."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from tests.client.stack_frames import names, normal, write_scaling, write_stack
from tests.wait import until

if TYPE_CHECKING:
    from tests.conftest import RunningServer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def there(server: RunningServer) -> list[str]:
    """The option that says where the real server is."""
    return ["--address", server.address]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "convolver.client.cli", "map", "stack.json", "in.npy", "out.npy", *arguments]


def on_a_terminal(arguments: list[str]) -> str:
    """What the command writes to a terminal that is its standard error."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with os.fdopen(ours, "rb", buffering=0) as screen:
        subprocess.run(command(*arguments), check=True, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
        os.write(theirs, b"\n")  # so that there is something to read
        os.close(theirs)
        return screen.read(2**16).decode()


def test_a_terminal_shows_how_far_it_is(there: list[str], folder: Path) -> None:
    write_stack(folder)
    np.save("in.npy", normal(10, 3, 8, 8))
    shown = on_a_terminal(there)
    assert "10/10" in shown
    assert "frames/s" in shown
    assert "0:00:00" in shown


def test_there_is_no_bar_if_that_is_not_wanted(there: list[str], folder: Path) -> None:
    write_stack(folder)
    np.save("in.npy", normal(10, 3, 8, 8))
    assert on_a_terminal([*there, "--no-progress"]).split() == []


def test_there_is_no_bar_in_a_pipe(there: list[str], folder: Path) -> None:
    write_stack(folder)
    np.save("in.npy", normal(10, 3, 8, 8))
    environment = {**os.environ, "FORCE_COLOR": "1"}
    run = subprocess.run(command(*there), check=True, capture_output=True, text=True, env=environment)
    assert run.stderr == ""


MEASURED = """
import sys
from pathlib import Path
from convolver.client.cli import main
try:
    main(sys.argv[1:])
except SystemExit as left:
    assert not left.code
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")))
"""


def kibibytes_for(count: int, folder: Path, arguments: list[str]) -> int:
    """What the command holds at the most, over this many frames of 1 MiB."""
    np.lib.format.open_memmap(folder / "in.npy", "w+", np.float32, (count, 1, 512, 512)).flush()
    given = ["map", "stack.json", "in.npy", "out.npy", *arguments]
    run = subprocess.run([sys.executable, "-c", MEASURED, *given], check=True, capture_output=True, text=True)
    assert np.load(folder / "out.npy", mmap_mode="r").shape == (count, 1, 512, 512)
    return int(run.stdout.splitlines()[-1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux says there what a process held")
def test_memory_does_not_grow_with_the_number_of_frames(there: list[str], folder: Path) -> None:
    write_scaling(folder, 1, np.float32)
    options = [*there, "--in-flight", "4"]
    few, many = (kibibytes_for(count, folder, options) for count in (20, 400))
    assert many - few < 100 * 1024


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_nothing(
    there: list[str], folder: Path, number: signal.Signals, status: int
) -> None:
    write_stack(folder)
    np.lib.format.open_memmap("in.npy", "w+", np.float32, (2**16, 3, 64, 64)).flush()  # 3 GiB, none of it on the disk
    (folder / "out.npy").write_text("before")
    before = names(folder)
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    process = subprocess.Popen(
        command(*there), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    until(lambda: any(path.stat().st_size > 2**14 for path in folder.glob(".out.npy.*.tmp")), "outputs to be written")
    process.send_signal(number)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # which shows where each of its threads is
        out, err = process.communicate()
    assert (process.returncode, out, err) == (status, "", ""), err
    assert names(folder) == before
    assert (folder / "out.npy").read_text() == "before"
