"""`python -m tests.fuzz`: each target in a process of its own, for so many seconds; what it found, a line each.

Exits with 1 where one of them crashed, hung or took memory without bound; its input and its log stay in out/fuzz/.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.fuzz.names import MODULES, PLANTED

if TYPE_CHECKING:
    from collections.abc import Sequence

REPOSITORY = Path(__file__).parent.parent.parent
TIMEOUT, RESIDENT, MORE = 60, 2048, 256
"""Seconds of one input that are a hang (a shared machine may pause); MiB of the process, and MiB on top of what its
start took, that are too much.
"""

SLACK = 120
"""Seconds after which a process is ended that libFuzzer should have ended."""


class Outcome(NamedTuple):
    """Of one target; `coverage` are libFuzzer's edges, `slowest` are the seconds of the slowest input, `exit` is 0
    where nothing was found, and else `found` is the input's file, or the log.
    """

    target: str
    exit: int
    executions: int
    coverage: int
    seconds: int
    peak_rss_mb: int
    slowest: float
    found: str

    @property
    def line(self) -> str:
        """For people."""
        said = f"FAILED, {self.found}" if self.exit else "nothing found"
        numbers = f"{self.executions:>9} runs {self.coverage:>5} edges {self.seconds:>4} s {self.peak_rss_mb:>4} MiB"
        return f"{self.target:<18} {numbers}  slowest {1000 * self.slowest:>6.1f} ms  {said}"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = _parser()
    given = parser.parse_args(argv)
    unknown = [name for name in given.targets if name not in {**MODULES, **PLANTED}]
    if unknown:
        parser.error(f"there is no target {unknown[0]}; --list names them")
    if given.list:
        sys.stdout.write("\n".join(MODULES) + "\n")
        return 0
    if find_spec("atheris") is None:
        sys.stderr.write("fuzz: atheris is not installed (it is for Linux on x86-64), so nothing was fuzzed\n")
        return 0
    outcomes = []
    for name in given.targets or MODULES:
        outcomes.append(fuzz(name, given))
        sys.stdout.write(f"{outcomes[-1].line}\n")
        sys.stdout.flush()
    if given.json:
        given.json.write_text(json.dumps([outcome._asdict() for outcome in outcomes], indent=1) + "\n")
    return int(any(outcome.exit for outcome in outcomes))


def fuzz(name: str, given: Namespace) -> Outcome:
    """Runs one target."""
    folder = given.out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = {
        "max_total_time": given.seconds,
        "runs": given.runs,
        "timeout": given.timeout,
        "rss_limit_mb": RESIDENT,
        "print_final_stats": 1,
        "artifact_prefix": f"{folder}/",
        **({} if given.seed is None else {"seed": given.seed}),
    }
    command = [sys.executable, "-m", "tests.fuzz.child", name, str(folder), str(MORE)]
    command += [f"-{option}={value}" for option, value in options.items()]
    log = folder / "log"
    with log.open("wb") as written:
        try:
            status = subprocess.run(
                command, cwd=REPOSITORY, stdout=written, stderr=written, timeout=given.seconds + SLACK, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    return _outcome(name, status, folder, log.read_text(errors="replace"))


def _outcome(name: str, status: int, folder: Path, log: str) -> Outcome:
    """What the log says, in libFuzzer's words."""
    slowest = folder / "slowest.txt"
    inputs = [path for kind in ("crash", "timeout-*", "oom-*", "leak-*") for path in folder.glob(kind)]
    return Outcome(
        name,
        status,
        _last(r"#(\d+)\s", log),
        _last(r"\bcov: (\d+)", log),
        _last(r"Done \d+ runs in (\d+) second", log),
        _last(r"(?:peak_rss_mb:\s+|rss: )(\d+)", log),
        float(slowest.read_text()) if slowest.exists() else 0.0,
        str(inputs[0] if inputs else folder / "log") if status else "",
    )


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all, unless some are named (--list)")
    parser.add_argument("--seconds", type=int, default=600, help="of each target")
    parser.add_argument("--runs", type=int, default=-1, help="inputs of each target, where those are fewer")
    parser.add_argument("--timeout", type=int, default=TIMEOUT, help="seconds of one input that are a hang")
    parser.add_argument("--seed", type=int, help="of libFuzzer's random numbers; another one each time unless given")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "out" / "fuzz", help="folder for what is found")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--list", action="store_true", help="name the targets and do nothing else")
    return parser


if __name__ == "__main__":
    sys.exit(main())
