"""Calls one service as it is told to: `python -m benchmarks._worker KIND ADDRESS DEVICE`.

Each line of standard input is an order, each of standard output what came of it, both in JSON. Every service has such a
process of its own, so that what a caller uses of processor and memory is told apart, and all run the same load.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import numpy as np

from convolver.client.bench import Call, Processes, Weights, Workload, offer, one_round
from convolver.client.bench._service import tensors

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = 64
"""Elements of an output by which it is compared with the others'."""


class Order(TypedDict):
    """What to do: take a sample of the first output, or a round of `seconds` by `callers`, all of them warm, while
    `processes` are watched as the server.
    """

    do: Literal["sample", "round"]
    workload: dict[str, Any]
    weights: Weights
    callers: int
    seconds: float
    processes: list[int]


class Caller(NamedTuple):
    """A call, and what it can end with beside its answer."""

    call: Call
    failures: tuple[type[Exception], ...]


def _convolver(address: str, device: str) -> Callable[[Workload, Weights], Caller]:
    from convolver.client import Client
    from convolver.client.bench import _service

    client, backend = Client(address, timeout=300.0), "torch:cuda" if device == "cuda" else "auto"
    return lambda workload, weights: Caller(
        _service.caller(client, workload, weights, backend=backend), _service.FAILURES
    )


def _naive(address: str, _: str) -> Callable[[Workload, Weights], Caller]:
    import grpc

    from benchmarks import naive

    def caller(workload: Workload, _: Weights) -> Caller:
        image, weight = tensors(workload)
        call = naive.caller(int(address), workload.padding, workload.stride, workload.groups)
        return Caller(lambda: call(image, weight), (grpc.RpcError,))

    return caller


def _echo(address: str, _: str) -> Callable[[Workload, Weights], Caller]:
    import grpc

    from benchmarks import echo

    def caller(workload: Workload, _: Weights) -> Caller:
        call, data = echo.caller(int(address)), bytes(workload.bytes // 2)  # both ways together as many bytes
        return Caller(lambda: call(data), (grpc.RpcError,))

    return caller


def _local(_: str, device: str) -> Callable[[Workload, Weights], Caller]:
    import torch

    from benchmarks._convolutions import convolution

    def caller(workload: Workload, _: Weights) -> Caller:
        image, weight = map(torch.from_numpy, tensors(workload))
        run = convolution(workload, weight, device)
        return Caller(lambda: run(image), ())

    return caller


def _pytriton(address: str, _: str) -> Callable[[Workload, Weights], Caller]:
    from benchmarks.triton import client

    return lambda workload, _: Caller(client.caller(f"127.0.0.1:{address}", workload), client.FAILURES)


KINDS = {"convolver": _convolver, "naive": _naive, "echo": _echo, "local": _local, "pytriton": _pytriton}


def main() -> None:
    """Until standard input ends."""
    kind, address, device = sys.argv[1:]
    caller_for = KINDS[kind](address, device)
    workload: Workload | None = None
    callers: dict[Weights, Caller] = {}
    for line in sys.stdin:
        order: Order = json.loads(line)
        wanted = _workload(order["workload"])
        if wanted != workload:  # the tensors of the one before are let go
            workload, callers = wanted, {}
        if order["weights"] not in callers:
            callers[order["weights"]] = caller_for(wanted, order["weights"])
        print(json.dumps(_done(order, callers[order["weights"]])), flush=True)


def _workload(told: dict[str, Any]) -> Workload:
    return Workload(**{**told, "input": tuple(told["input"]), "weight": tuple(told["weight"])})


def _done(order: Order, caller: Caller) -> dict[str, Any]:
    if order["do"] == "sample":
        return _sample(caller)
    calls = [caller.call] * order["callers"]
    return asdict(one_round(calls, order["seconds"], caller.failures, Processes(order["processes"])))


def _sample(caller: Caller) -> dict[str, Any]:
    """Of the first output, whose errors are left to the rounds. The first calls carry what later ones find."""
    found: list[float] = []

    def call() -> None:
        values = np.asarray(caller.call())
        if values.dtype == np.float32:  # an echo has none
            found[:] = values.ravel()[:: max(1, values.size // SAMPLES)].tolist()

    load = offer([call], 0.0, caller.failures)
    return {"sample": found, "errors": load.errors}


if __name__ == "__main__":
    main()
