"""The services that are measured, each with a process of its own that calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks._children import Child, Ended, child, descendants
from benchmarks.triton import environment as pytriton
from convolver.client.bench import WORKLOADS, Round, Weights, Workload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

BOTH: tuple[Weights, ...] = ("layers", "inline")

LOCAL, NAIVE, ECHO, PYTRITON = "local torch", "naive service", "bare echo", "PyTriton"
TCP, UNIX, SHARED = "convolver, TCP", "convolver, unix socket", "convolver, shared memory"
OURS = (TCP, UNIX, SHARED)


@dataclass(frozen=True, slots=True)
class Settings:
    """Threads that compute, here and there, and on what: "cpu" or "cuda"."""

    threads: int
    device: str


class Worker:
    """A process of benchmarks._worker."""

    def __init__(self, child: Child, processes: Sequence[int]) -> None:
        self._child, self._processes = child, list(processes)

    def sample(self, workload: Workload, weights: Weights) -> dict[str, Any]:
        """Some elements of the first output, and errors. Raises Ended."""
        return self._ask("sample", workload, weights, 1, 0.0)

    def round(self, workload: Workload, weights: Weights, callers: int, seconds: float) -> Round:
        """One round. Raises Ended."""
        return Round.from_json(self._ask("round", workload, weights, callers, seconds))

    def _ask(self, do: str, workload: Workload, weights: Weights, callers: int, seconds: float) -> dict[str, Any]:
        order = {
            "do": do,
            "workload": asdict(workload),
            "weights": weights,
            "callers": callers,
            "seconds": seconds,
            "processes": self._processes,
        }
        answer: dict[str, Any] = json.loads(self._child.asked(json.dumps(order)))
        return answer


@dataclass(frozen=True, slots=True)
class Service:
    """One that is measured: how its weights may travel, and with how many callers at the most."""

    name: str
    worker: Worker
    weights: tuple[Weights, ...]
    most_callers: int = sys.maxsize


def convolver_server(stack: ExitStack, settings: Settings, *flags: str) -> tuple[str, Child]:
    """Its addresses and its process. Raises Ended."""
    common = ("--http-listen", "none", "--exit-on-eof", "--log-level", "warning", "--threads", str(settings.threads))
    command = (sys.executable, "-m", "convolver.server", *common, *flags)
    server = stack.enter_context(child(*command, stderr=subprocess.STDOUT))  # there it says where it listens
    return server.ready(), server


def worker(
    stack: ExitStack,
    settings: Settings,
    kind: str,
    address: str,
    server: Child | None,
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Worker:
    """A caller of a service, which watches the server's processes."""
    command = (python, "-m", "benchmarks._worker", kind, address, settings.device)
    process = stack.enter_context(child(*command, environment=environment))
    return Worker(process, descendants(server.process.pid) if server else ())


def _local(stack: ExitStack, settings: Settings) -> list[Service]:
    return [Service(LOCAL, worker(stack, settings, "local", "", None), ("layers",))]


def _beside(name: str, kind: str, most: int = sys.maxsize) -> Callable[[ExitStack, Settings], list[Service]]:
    """A service of this package, served by the module of its kind."""

    def started(stack: ExitStack, settings: Settings) -> list[Service]:
        server = stack.enter_context(child(sys.executable, "-m", f"benchmarks.{kind}"))
        return [Service(name, worker(stack, settings, kind, server.ready(), server), ("inline",), most)]

    return started


def _convolver(stack: ExitStack, settings: Settings, folder: Path) -> list[Service]:
    listen = ("--listen", "127.0.0.1:0", "--listen", f"unix:{folder}/socket")
    addresses, server = convolver_server(stack, settings, *listen)
    tcp, unix = addresses.split()
    return [
        Service(TCP, worker(stack, settings, "convolver", tcp, server), BOTH),
        Service(UNIX, worker(stack, settings, "convolver", unix, server), BOTH),
    ]


def _shared(stack: ExitStack, settings: Settings, folder: Path) -> list[Service]:
    address, server = convolver_server(stack, settings, "--shared-memory", "--listen", f"unix:{folder}/shared")
    if not _offers_shared_memory(address):
        raise Ended("GetInfo does not offer it")
    return [Service(SHARED, worker(stack, settings, "convolver", address, server), BOTH)]


def _offers_shared_memory(address: str) -> bool:
    import grpc

    from convolver.v1 import convolution_service_pb2 as pb
    from convolver.v1.convolution_service_pb2_grpc import ConvolutionServiceStub

    with grpc.insecure_channel(address) as channel:
        return bool(ConvolutionServiceStub(channel).GetInfo(pb.GetInfoRequest()).shared_memory)


def _pytriton(stack: ExitStack, settings: Settings) -> list[Service]:
    python = str(pytriton.python())
    path = {"PYTHONPATH": os.pathsep.join(str(pytriton.REPOSITORY / one) for one in ("", "core", "client"))}
    command = (python, "-m", "benchmarks.triton.server", str(settings.threads), *WORKLOADS)
    server = stack.enter_context(child(*command, environment=path))
    address = server.ready()
    caller = worker(stack, settings, "pytriton", address, server, python=python, environment=path)
    return [Service(PYTRITON, caller, ("layers",))]


def services(
    stack: ExitStack, settings: Settings, folder: Path, wanted: Sequence[str]
) -> tuple[list[Service], dict[str, str]]:
    """Those that are wanted and start, and why others did not; unix sockets are made in `folder`."""
    makers: dict[str, Callable[[ExitStack, Settings], list[Service]]] = {
        "local": _local,
        "naive": _beside(NAIVE, "naive"),
        "echo": _beside(ECHO, "echo", 1),
        "convolver": lambda stack, settings: _convolver(stack, settings, folder),
        "shared-memory": lambda stack, settings: _shared(stack, settings, folder),
        "pytriton": _pytriton,
    }
    found, missing = [], {}
    for name in wanted:
        try:
            found += makers[name](stack, settings)
        except (Ended, pytriton.NotInstalled) as error:
            missing[name] = str(error)
    return found, missing
