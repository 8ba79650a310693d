"""Many callers at once: batching, overload, and small calls beside large ones: python -m benchmarks.load.

The load comes from h2load (Debian: nghttp2-client) on the same machine, which takes its part of the cores.
"""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple, Self
from urllib.request import urlopen

import grpc
import numpy as np

from benchmarks import _h2load
from benchmarks._children import child
from benchmarks._measure import RESULTS, Table, machine, write
from convolver.client import Client

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray


class Work(NamedTuple):
    """A layer and its input."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    padding: int


HEAVY = Work((1, 512, 8, 8), (512, 512, 5, 5), 2)
BIG = Work((1, 512, 88, 88), (512, 512, 5, 5), 2)
TINY = Work((1, 3, 32, 32), (16, 3, 3, 3), 1)
BATCHED = {
    "tiny: 1x3x32x32 -> 16, 3x3": TINY,
    "1x64x56x56 -> 64, 3x3": Work((1, 64, 56, 56), (64, 64, 3, 3), 1),
    "1x256x14x14 -> 256, 3x3": Work((1, 256, 14, 14), (256, 256, 3, 3), 1),
    "1x512x7x7 -> 512, 3x3": Work((1, 512, 7, 7), (512, 512, 3, 3), 1),
    "1x512x7x7 -> 2048, 1x1": Work((1, 512, 7, 7), (2048, 512, 1, 1), 0),
    "1x512x8x8 -> 512, 5x5": HEAVY,
}
CONNECTIONS, STREAMS = 8, 8
"""64 callers."""


class Flood(NamedTuple):
    """The load over the best that the server reaches, the connections that it comes on, and the server's flags."""

    times: float
    connections: int = CONNECTIONS
    flags: tuple[str, ...] = ()


OVERLOADS = {
    "2 times its best": Flood(2),
    "10 times its best": Flood(10),
    "10 times its best, on 64 connections": Flood(10, 64),
    "10 times its best, on 64 connections of 10 calls": Flood(10, 64, ("--max-concurrent-streams=10",)),
}

FLOOD = "flood"
"""The name of the caller who asks for more than there is."""


class Running(NamedTuple):
    """A server and where its metrics are."""

    address: str
    http: str
    pid: int

    def metric(self, prefix: str) -> float:
        """The sum of the samples that begin so."""
        lines = urlopen(f"{self.http}/metrics").read().decode().splitlines()  # noqa: S310 - our own server
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(prefix))

    def handled(self, code: str) -> float:
        """Calls of Convolve with this code, "" for any."""
        labels = f'grpc_code="{code}",grpc_method="Convolve"' if code else ""
        return self.metric(f"grpc_server_handled_total{{{labels}")

    def resident_mib(self) -> int:
        """Of its process."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4096 >> 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of load.json and load.md")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload; the others in proportion")
    parser.add_argument("--rounds", type=int, default=3, help="of each comparison")
    options = parser.parse_args(arguments)
    short = max(1.0, options.seconds / 15)
    batching = {name: _batching(work, short, options.rounds) for name, work in BATCHED.items()}
    overload = {name: _overload(each, options.seconds, short) for name, each in OVERLOADS.items()}
    mixed = _mixed(options.seconds / 6)
    tables = [
        Table(
            "64 callers of a layer, calls a second (median)", ("layer", "alone", "batched", "ratio"), _rows(batching)
        ),
        *(_table(f"{HEAVY.input} to 512, 5x5, {name}", each) for name, each in overload.items()),
        _table("tiny beside a caller of large ones", mixed),
    ]
    figures = {
        "machine": machine("grpcio", "numpy", "torch"),
        "batching": batching,
        "overload": overload,
        "mixed": mixed,
    }
    write("load", figures, tables, options.out)


def _rows(batching: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    return [
        (name, f"{each['alone']:.0f}", f"{each['batched']:.0f}", f"{each['ratio']:.2f}")
        for name, each in batching.items()
    ]


def _table(title: str, figures: Mapping[str, float]) -> Table:
    return Table(title, ("", "measured"), [(name, f"{value:.4g}") for name, value in figures.items()])


def _batching(work: Work, seconds: float, rounds: int) -> dict[str, float]:
    """Calls a second without batches and with them, in turns."""
    found: dict[str, list[float]] = {"alone": [], "batched": []}
    for _ in range(rounds):
        for name, flags in (("alone", ("--max-batch=1",)), ("batched", ())):
            with _server(*flags) as server, _layer(server, work) as (_, message):
                _h2load.run(server.address, message, 1, CONNECTIONS, STREAMS)
                found[name].append(_h2load.run(server.address, message, seconds, CONNECTIONS, STREAMS))
    alone, batched = median(found["alone"]), median(found["batched"])
    return {"alone": alone, "batched": batched, "ratio": batched / alone}


def _overload(flood: Flood, seconds: float, short: float) -> dict[str, float]:
    """A load of so many times the best that closed loops reach, while one more caller asks again and again."""
    with _server(*flood.flags) as server, _layer(server, HEAVY) as (call, message):
        unloaded = _timed(call, short)
        before = server.handled("OK")
        _h2load.run(server.address, message, 2 * short, CONNECTIONS, STREAMS)
        best = (server.handled("OK") - before) / (2 * short)
        done = {code: server.handled(code) for code in ("OK", "ResourceExhausted", "")}
        begin = time.monotonic()
        with _Probe(server, message, "another") as other, _Probe(server, message, FLOOD) as own:
            _h2load.run(server.address, message, seconds, flood.connections, 1000, best * flood.times, FLOOD)
            elapsed = time.monotonic() - begin
            done = {code: (server.handled(code) - count) / elapsed for code, count in done.items()}
    return {
        "best, a second": best,
        "asked for, a second": best * flood.times,
        "goodput, a second": done["OK"],
        "goodput over best": done["OK"] / best,
        "refused by the server, a second": done["ResourceExhausted"],
        "ended in any way, a second": done[""],
        "unloaded p99, s": _percentile(unloaded, 0.99),
        "another caller: answered": len(other.accepted),
        "another caller: answered, p50 s": _percentile(other.accepted, 0.5),
        "another caller: answered, p99 s": _percentile(other.accepted, 0.99),
        "another caller: calls not answered": len(other.refused) + len(other.failed),
        "the flood's: answered": len(own.accepted),
        "the flood's: refused": len(own.refused),
        "the flood's: refused, p50 s": _percentile(own.refused, 0.5),
        "the flood's: refused, p99 s": _percentile(own.refused, 0.99),
        "the flood's: other errors": len(own.failed),
        "the flood's: other errors, p99 s": _percentile(own.failed, 0.99),
        "RSS after a third, MiB": other.resident[len(other.resident) // 3],
        "RSS at the end, MiB": other.resident[-1],
        "RSS at most, MiB": max(other.resident),
    }


def _mixed(seconds: float) -> dict[str, float]:
    """Tiny calls alone, and beside one caller of convolutions of about a second."""
    with _server() as server, _layer(server, TINY) as (tiny, _), _layer(server, BIG) as (big, _):
        alone, large, over = _timed(tiny, seconds), list[float](), threading.Event()

        def others() -> None:
            while not over.is_set():
                large.extend(_timed(big, 0))

        beside = threading.Thread(target=others)
        beside.start()
        try:
            mixed = _timed(tiny, seconds)
        finally:
            over.set()
            beside.join()
    unloaded, loaded = _percentile(alone, 0.99), _percentile(mixed, 0.99)
    return {
        "large, median s": median(large),
        "tiny alone p50, s": median(alone),
        "tiny alone p99, s": unloaded,
        "tiny beside p50, s": median(mixed),
        "tiny beside p99, s": loaded,
        "p99 beside over alone": loaded / unloaded,
    }


class _Probe(threading.Thread):
    """One call after the other, without retries, while it is entered: seconds of those that were answered, refused, and
    neither.
    """

    def __init__(self, server: Running, message: bytes, caller: str) -> None:
        super().__init__()
        self._server, self._message, self._over = server, message, threading.Event()
        self._metadata = (("convolver-client", caller),)
        self.accepted: list[float] = []
        self.refused: list[float] = []
        self.failed: list[float] = []
        self.resident: list[int] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        """Calls until it is over."""
        with grpc.insecure_channel(self._server.address, options=[("grpc.enable_retries", 0)]) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{_h2load.METHOD}")
            while not self._over.wait(0.01):
                begin, seconds = time.perf_counter(), self.accepted
                try:
                    call(self._message, timeout=60, metadata=self._metadata)
                except grpc.RpcError as error:
                    is_refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    seconds = self.refused if is_refused else self.failed
                seconds.append(time.perf_counter() - begin)
                self.resident.append(self._server.resident_mib())


@contextmanager
def _server(*flags: str) -> Iterator[Running]:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        http = f"127.0.0.1:{reserved.getsockname()[1]}"
    command = (sys.executable, "-m", "convolver.server", "--listen", "127.0.0.1:0", "--http-listen", http, *flags)
    with child(*command, "--exit-on-eof", stderr=subprocess.STDOUT) as server:
        yield Running(server.ready(), f"http://{http}", server.process.pid)


@contextmanager
def _layer(server: Running, work: Work) -> Iterator[tuple[Callable[[], object], bytes]]:
    """A call of a layer that the server holds, and the message that it sends."""
    random = np.random.default_rng(0)
    input: NDArray[np.float32] = random.standard_normal(work.input, dtype=np.float32)
    with Client(server.address) as client:
        layer = client.layer(random.standard_normal(work.weight, dtype=np.float32), padding=work.padding)
        layer(input)
        yield lambda: layer(input), _h2load.request(layer.digest, work.input, input.data.cast("B"))


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, one after the other."""
    found, end = list[float](), time.monotonic() + seconds
    while not found or time.monotonic() < end:
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return found


def _percentile(seconds: Sequence[float], part: float) -> float:
    """-1 where there are none."""
    return sorted(seconds)[min(len(seconds) - 1, int(len(seconds) * part))] if seconds else -1.0


if __name__ == "__main__":
    main()
