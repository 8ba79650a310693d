"""What tests ask a server with workers, whose processes are its children."""

from __future__ import annotations

import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from prometheus_client.parser import text_string_to_metric_families
from tests.contract import call, good_request

if TYPE_CHECKING:
    from tests.conftest import RunningServer

HANDLED = "grpc_server_handled_total"


def children(running: RunningServer) -> set[int]:
    """The process ids of its workers."""
    return children_of(running.process.pid)


def children_of(pid: int) -> set[int]:
    """Of a process that may have ended, and is not waited for."""
    found = set[int]()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ends meanwhile
            found.update(map(int, task.read_text().split()))
    return found


def has_ended(pid: int) -> bool:
    """Whether there is no such process, or a mere trace of one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def exposed(running: RunningServer) -> str:
    """Its /metrics."""
    with urllib.request.urlopen(f"{running.http}/metrics", timeout=30) as answer:  # noqa: S310 - our own http://
        text: str = answer.read().decode()
    return text


def values(running: RunningServer, sample: str, **labels: str) -> dict[str, float]:
    """The sum of this sample with these labels, for each worker; under "" what has no worker."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(exposed(running)):
        for found in family.samples:
            if found.name == sample and labels.items() <= found.labels.items():
                worker = found.labels.get("worker", "")
                sums[worker] = sums.get(worker, 0.0) + found.value
    return sums


def convolved(running: RunningServer) -> dict[str, float]:
    """The calls of Convolve that each worker has answered."""
    return values(running, HANDLED, grpc_method="Convolve", grpc_code="OK")


def call_anew(running: RunningServer) -> bytes:
    """One call over a connection of its own."""
    with grpc.insecure_channel(running.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        return call(channel, good_request())
