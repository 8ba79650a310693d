"""Large kernels: a remote call of `auto` over TCP against local torch: python -m benchmarks.large."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from benchmarks._measure import RESULTS, Table, duration, interleave, machine, medians, write
from benchmarks.remote import child
from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


THREADS = 2


class Case(NamedTuple):
    """One channel in, one out. Rounds are few where torch takes seconds: it does above a padding of 28, where oneDNN
    leaves it to an im2col of the whole picture.
    """

    input: tuple[int, ...]
    weight: tuple[int, ...]
    padding: int
    rounds: int


CASES = {
    "1x1x1024x1024, 31x31, valid": Case((1, 1, 1024, 1024), (1, 1, 31, 31), 0, 15),
    "1x1x1024x1024, 31x31, same": Case((1, 1, 1024, 1024), (1, 1, 31, 31), 15, 15),
    "1x1x1024x1024, 63x63, valid": Case((1, 1, 1024, 1024), (1, 1, 63, 63), 0, 7),
    "1x1x1024x1024, 63x63, same": Case((1, 1, 1024, 1024), (1, 1, 63, 63), 31, 3),
    "1025-tap FIR over 10^6 samples, valid": Case((1, 1, 1_000_000), (1, 1, 1025), 0, 15),
    "1025-tap FIR over 10^6 samples, same": Case((1, 1, 1_000_000), (1, 1, 1025), 512, 15),
}
FUNCTIONS: dict[int, Callable[..., torch.Tensor]] = {3: torch.nn.functional.conv1d, 4: torch.nn.functional.conv2d}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of large.json and large.md")
    parser.add_argument("--rounds", type=int, default=15, help="calls of each, at most")
    options = parser.parse_args(arguments)
    torch.set_num_threads(THREADS)
    with ExitStack() as stack:
        flags = ("--listen", "127.0.0.1:0", "--http-listen", "none", "--exit-on-eof", "--threads", str(THREADS))
        words = stack.enter_context(child("-m", "convolver.server", *flags)).split()
        client = stack.enter_context(Client(words[words.index("on") + 1]))
        figures = {name: _compared(client, case, options.rounds) for name, case in CASES.items()}
    payload = {"machine": machine("grpcio", "numpy", "torch"), "threads": THREADS, "figures": figures}
    write("large", payload, [_table(figures)], options.out)


def _compared(client: Client, case: Case, rounds: int) -> dict[str, float | str]:
    rng = np.random.default_rng(0)
    signal, kernel = (rng.standard_normal(shape, np.float32) for shape in (case.input, case.weight))
    tensors = torch.from_numpy(signal), torch.from_numpy(kernel)
    remote = client.conv1d if signal.ndim == 3 else client.conv2d

    def local() -> torch.Tensor:
        with torch.inference_mode():
            return FUNCTIONS[signal.ndim](*tensors, padding=case.padding)

    np.testing.assert_allclose(remote(signal, kernel, padding=case.padding), local().numpy(), rtol=1e-4, atol=1e-3)
    candidates = {"torch": local, "convolver": lambda: remote(signal, kernel, padding=case.padding)}
    seconds = medians(interleave(candidates, min(rounds, case.rounds), warmup=1))
    plan = client.plan(case.input, case.weight, padding=case.padding)
    return {
        **seconds,
        "times as fast": seconds["torch"] / seconds["convolver"],
        "took": f"{plan.algorithm}, {plan.backend}",
    }


def _table(figures: dict[str, dict[str, float | str]]) -> Table:
    rows = [
        [
            name,
            duration(float(row["torch"])),
            duration(float(row["convolver"])),
            str(row["took"]),
            f"{row['times as fast']:.1f}",
        ]
        for name, row in figures.items()
    ]
    title = f"A call, float32, {THREADS} threads, median"
    return Table(title, ("one channel", "local torch", "convolver over TCP", "auto took", "times as fast"), rows)


if __name__ == "__main__":
    main()
