"""All kinds of calls on one server for a long time: does it grow, and does anything fail: python -m benchmarks.soak."""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from bisect import bisect
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from subprocess import STDOUT
from typing import TYPE_CHECKING, NamedTuple

from benchmarks._children import child
from benchmarks._measure import RESULTS, Table, machine, write
from benchmarks._soak_calls import Caller
from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Sequence

MIB = 1 << 20
SHAPES = 2000
"""Distinct ones that the callers draw from, again and again."""

CALLERS = 4
MOST_GROWTH = 0.05
"""Of the mean RSS in the second third, which that in the last third may be above it, and MOST_NOISE beside that."""

MOST_NOISE = 16 * MIB
MOST_THREADS = 4
"""Threads and descriptors by which a last third may be above the second: gRPC's own come and go."""

JOIN_SECONDS = 90.0
"""That the last calls may take: more than their timeout."""


class Sample(NamedTuple):
    """What the server held, so many seconds after the start, and what had been called until then."""

    seconds: float
    rss: int
    threads: int
    descriptors: int
    calls: int


class Verdict(NamedTuple):
    """Means over the second third and the last, in bytes and numbers, and what is wrong with them."""

    rss: tuple[float, float]
    threads: tuple[float, float]
    descriptors: tuple[float, float]
    wrong: tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """Call, print, judge, write; exit code 1 where the server grows or a call fails that should not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between two lines")
    parser.add_argument("--shapes", type=int, default=SHAPES, help="distinct shapes of inputs")
    parser.add_argument("--backend", default="auto", help="of the server")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of soak.json and soak.md")
    options = parser.parse_args(arguments)
    done, failed, shapes = Counter[str](), Counter[str](), set[tuple[int, ...]]()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        flags = ("--http-listen=none", "--exit-on-eof", f"--backend={options.backend}", "--layer-budget=8MiB")
        where = ("--listen=127.0.0.1:0", f"--listen=unix:{folder}/socket", "--shared-memory")
        server = stack.enter_context(child(sys.executable, "-m", "convolver.server", *flags, *where, stderr=STDOUT))
        tcp, unix = server.ready().split()
        # As gRPC writes it, the SDK does not take the first for this host's: its callers share no memory.
        addresses = f"ipv4:{tcp}", unix
        callers = [Caller(addresses[i % 2], i, options.shapes, done, failed, shapes) for i in range(CALLERS)]
        samples = _watched(callers, server.process.pid, (done, failed), options.seconds, options.every)
        with Client(addresses[0]) as client:
            client.info()  # it is alive
    verdict = judged(samples, failed)
    _write(samples, verdict, (done, failed, shapes), options.out)
    if verdict.wrong:
        sys.exit("\n".join(verdict.wrong))


def _watched(
    callers: Sequence[Caller], pid: int, counted: tuple[Counter[str], Counter[str]], seconds: float, every: float
) -> list[Sample]:
    """Samples while they call, a hundred or more; a call that never ends has failed."""
    done, failed = counted
    ended = threading.Event()
    threads = [threading.Thread(target=caller.call_until, args=(ended,), daemon=True) for caller in callers]
    samples, begin, said = list[Sample](), time.monotonic(), 0
    for thread in threads:
        thread.start()
    try:
        while (spent := time.monotonic() - begin) < seconds:
            samples.append(sampled(pid, spent, done.total()))
            if spent > every * (said + 1):
                first = bisect(samples, spent - every, key=lambda one: one.seconds) - 1
                _say(samples[max(0, first)], samples[-1])
                said += 1
            time.sleep(min(1.0, seconds / 100))
    finally:
        ended.set()
        for thread in threads:
            thread.join(JOIN_SECONDS)
    hung = sum(thread.is_alive() for thread in threads)
    if hung:
        failed["call has never ended"] = hung
    return samples


def sampled(pid: int, seconds: float, calls: int) -> Sample:
    """What the process holds now."""
    proc = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    own = sum(1024 * int(status[name].split()[0]) for name in ("RssAnon", "RssFile"))  # RssShmem is its callers'
    threads, open_files = (list((proc / folder).iterdir()) for folder in ("task", "fd"))
    return Sample(seconds, own, len(threads), sum(map(_is_own, open_files)), calls)


def _is_own(descriptor: Path) -> bool:
    """Whether it is not of memory that a caller shares, who may share another number of regions at any time."""
    try:
        return not str(descriptor.readlink()).startswith("/memfd:")
    except FileNotFoundError:  # closed meanwhile
        return False


def judged(samples: Sequence[Sample], failed: Counter[str]) -> Verdict:
    """Whether the server grew from the second third to the last, and what failed."""
    end = samples[-1].seconds
    thirds = [[one for one in samples if end * i / 3 <= one.seconds <= end * (i + 1) / 3] or samples for i in (1, 2)]

    def means(name: str) -> tuple[float, float]:
        second, last = (sum(getattr(one, name) for one in third) / len(third) for third in thirds)
        return second, last

    rss, threads, descriptors = map(means, ("rss", "threads", "descriptors"))
    wrong = [f"{number} times {text}" for text, number in failed.items()]
    if rss[1] > rss[0] * (1 + MOST_GROWTH) + MOST_NOISE:
        wrong.append(f"RSS grew from {rss[0] / MIB:.0f} to {rss[1] / MIB:.0f} MiB")
    for name, (second, last) in (("threads", threads), ("descriptors", descriptors)):
        if last > second + MOST_THREADS:
            wrong.append(f"{name} grew from {second:.1f} to {last:.1f}")
    return Verdict(rss, threads, descriptors, tuple(wrong))


def _say(before: Sample, now: Sample) -> None:
    rate = (now.calls - before.calls) / (now.seconds - before.seconds)
    print(
        f"{now.seconds:6.0f} s  RSS {now.rss / MIB:6.0f} MiB  threads {now.threads:3}  descriptors "
        f"{now.descriptors:3}  calls {now.calls:8}  {rate:6.0f}/s",
        flush=True,
    )


def _write(
    samples: Sequence[Sample],
    verdict: Verdict,
    counted: tuple[Counter[str], Counter[str], set[tuple[int, ...]]],
    out: Path,
) -> None:
    done, failed, shapes = counted
    rows = [
        ["RSS, MiB", *(f"{each / MIB:.0f}" for each in verdict.rss)],
        ["threads", *(f"{each:.1f}" for each in verdict.threads)],
        ["descriptors", *(f"{each:.1f}" for each in verdict.descriptors)],
    ]
    seconds = samples[-1].seconds
    payload = {
        "machine": machine("grpcio", "numpy"),
        "seconds": seconds,
        "distinct_shapes": len(shapes),
        "done": done,
        "failed": failed,
        "wrong": verdict.wrong,
        "samples": [one._asdict() for one in samples],
    }
    title = (
        f"{seconds:.0f} s, {len(shapes)} distinct shapes: {'; '.join(verdict.wrong) or 'nothing grew, nothing failed'}"
    )
    tables = [
        Table(title, ("mean of the server's", "second third", "last third"), rows),
        Table("Calls", ("kind", "times"), [[kind, str(times)] for kind, times in sorted(done.items())]),
    ]
    write("soak", payload, tables, out)


if __name__ == "__main__":
    main()
