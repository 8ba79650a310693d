"""A remote call against local torch and against a naive service: python -m benchmarks.remote."""

from __future__ import annotations

import argparse
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

import numpy as np
import torch

from benchmarks import naive
from benchmarks._measure import RESULTS, Table, duration, interleave, machine, medians, write
from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Input, weight, rounds. Kernels are 3x3 with padding 1, everything float32.
SHAPES = {
    "1x3x32x32 -> 16": ((1, 3, 32, 32), (16, 3, 3, 3), 2000),
    "1x64x56x56 -> 64": ((1, 64, 56, 56), (64, 64, 3, 3), 300),
    "1x3x1024x1024 -> 8": ((1, 3, 1024, 1024), (8, 3, 3, 3), 60),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.remote", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of remote.json and remote.md")
    parser.add_argument("--threads", type=int, default=2, help="compute threads of each of the three")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        port = stack.enter_context(child("-m", "benchmarks.naive")).split()[0]
        flags = ("--listen", "127.0.0.1:0", "--http-listen", "none", "--exit-on-eof", "--threads", str(options.threads))
        words = stack.enter_context(child("-m", "convolver.server", *flags)).split()
        client = stack.enter_context(Client(words[words.index("on") + 1]))
        figures = {name: _compared(client, int(port), *case) for name, case in SHAPES.items()}
    write(
        "remote", {"machine": machine("grpcio", "numpy", "torch"), "seconds": figures}, [_table(figures)], options.out
    )


def _compared(
    client: Client, port: int, shape: Sequence[int], weight_shape: Sequence[int], rounds: int
) -> dict[str, object]:
    rng = np.random.default_rng(0)
    image, weight = (rng.standard_normal(s, np.float32) for s in (shape, weight_shape))
    tensors = torch.from_numpy(image), torch.from_numpy(weight)
    obvious = naive.caller(port)

    def local() -> torch.Tensor:
        with torch.inference_mode():
            return torch.nn.functional.conv2d(*tensors, padding=1)

    expected = local().numpy()
    np.testing.assert_allclose(client.conv2d(image, weight, padding=1), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(obvious(image, weight), expected, rtol=1e-4, atol=1e-4)
    candidates = {
        "local torch": local,
        "naive service": lambda: obvious(image, weight),
        "convolver": lambda: client.conv2d(image, weight, padding=1),
        "convolver, torch": lambda: client.conv2d(image, weight, padding=1, backend="torch"),
    }
    seconds = medians(interleave(candidates, rounds, warmup=10))
    return {**seconds, "backend": client.plan(shape, weight_shape, padding=1).backend}


def _table(figures: dict[str, dict[str, object]]) -> Table:
    rows = []
    for name, row in figures.items():
        seconds = {key: float(value) for key, value in row.items() if isinstance(value, float)}
        local, obvious, ours = seconds["local torch"], seconds["naive service"], seconds["convolver"]
        shown = [duration(value) for value in seconds.values()]
        rows.append([name, *shown, str(row["backend"]), f"{ours / local:.2f}", f"{obvious / ours:.2f}"])
    names = ("local torch", "naive service", "convolver", "convolver, torch", "auto took")
    return Table("A call, median", ("3x3 kernels", *names, "convolver / local", "naive / convolver"), rows)


@contextmanager
def child(*command: str) -> Iterator[str]:
    """A server of this interpreter that ends with its standard input; the line in which it says where it listens."""
    with subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        output, pipe = cast("IO[str]", child.stdout), cast("IO[str]", child.stdin)
        yield next(line for line in output if line.strip().isdigit() or " listening on " in line)
        pipe.close()


if __name__ == "__main__":
    main()
