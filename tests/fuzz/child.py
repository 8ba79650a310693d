"""One target, in a process of its own: `python -m tests.fuzz.child TARGET FOLDER MEGABYTES`, then libFuzzer's options.

FOLDER gets `seeds/`, `slowest` (the input that took longest), `slowest.txt` (its seconds) and `crash` (an input that
raised, if one did). Memory beyond MEGABYTES on top of what the start took is refused by the system: the MemoryError is
a finding.
"""

from __future__ import annotations

import importlib
import os
import resource
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import atheris
from tests.fuzz.names import MODULES, PLANTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fuzz.target import Target


CRASHED = 77
"""The exit status, as libFuzzer's."""


def main() -> None:
    """Fuzzes until libFuzzer ends the process."""
    name, folder, megabytes, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["convolver"]):
        module = importlib.import_module(f"tests.fuzz.{(MODULES | PLANTED)[name]}")
    target: Target = module.target(name)
    seeds = Path(folder) / "seeds"
    seeds.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (seeds / f"{number}").write_bytes(seed)
        target.run(seed)  # what is made once is made now, threads among it
    _limit_memory(int(megabytes) << 20)
    watched = _watched(target.run, Path(folder))
    atheris.Setup([sys.argv[0], *options, str(seeds)], watched, custom_mutator=target.mutate)
    atheris.Fuzz()


def _limit_memory(more: int) -> None:
    """Data is what is private and may be written, be it that nobody has touched it yet (Linux, getrlimit(2))."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:")]
    most = (int(line.split()[1]) << 10) + more
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _watched(run: Callable[[bytes], None], folder: Path) -> Callable[[bytes], None]:
    longest = 0.0

    def watched(data: bytes) -> None:
        nonlocal longest
        begin = time.perf_counter()
        try:
            run(data)
        except BaseException:  # noqa: BLE001  # whatever it is, it is what was looked for
            (folder / "crash").write_bytes(data)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(CRASHED)  # an orderly end would wait for the target's threads
        seconds = time.perf_counter() - begin
        if seconds > 1.1 * longest:
            longest = seconds
            (folder / "slowest").write_bytes(data)
            (folder / "slowest.txt").write_text(f"{seconds:.6f}")

    return watched


main()
