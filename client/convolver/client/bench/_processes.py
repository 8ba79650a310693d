"""CPU time and memory of processes: of this host's from /proc (Linux), of a server elsewhere from its metrics."""

from __future__ import annotations

import os
import re
import socket
import struct
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PROC = Path("/proc")
INTERVAL = 0.25
"""Seconds between two looks at a server's metrics."""
TIMEOUT = 5.0
"""Seconds that one look may take."""

_TCP = re.compile(r"(?P<host>\[[^\]]+\]|[^:/,\[\]]+):(?P<port>\d+)$")
_LISTENS = "0A"
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)


class Usage(NamedTuple):
    """CPU seconds that were used; bytes of memory at the start, and at the peak since. None is not known."""

    cpu_seconds: float | None = None
    idle_bytes: int | None = None
    peak_bytes: int | None = None


class Meter(Protocol):
    """Watches from `start` to `stop`."""

    def start(self) -> None:
        """From now on."""

    def stop(self) -> Usage:
        """What was used since."""


class Processes:
    """Watches processes of this host, together; pages that several of them share count in each. Of none, and where
    there is no /proc or it may not be read, nothing is known.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._folders = [PROC / str(pid) for pid in pids]
        self._cpu: float | None = None
        self._idle: int | None = None

    def start(self) -> None:
        """Forgets the peaks so far."""
        with suppress(OSError):  # another user's: its peak is then that of its whole life
            for folder in self._folders:
                (folder / "clear_refs").write_text(_RESET_PEAK)
        self._cpu, self._idle = self._cpu_seconds(), self._memory("VmRSS")

    def stop(self) -> Usage:
        """What was used since `start`."""
        now = self._cpu_seconds()
        used = None if now is None or self._cpu is None else now - self._cpu
        return Usage(used, self._idle, self._memory("VmHWM"))

    def _cpu_seconds(self) -> float | None:
        with suppress(OSError):
            fields = [(folder / "stat").read_text().rpartition(")")[2].split() for folder in self._folders]
            ticks = sum(int(user) + int(system) for user, system in (one[11:13] for one in fields))
            return ticks / os.sysconf("SC_CLK_TCK") if fields else None
        return None

    def _memory(self, name: str) -> int | None:
        with suppress(OSError):
            texts = [(folder / "status").read_text() for folder in self._folders]
            found = [re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for text in texts]
            return sum(1024 * int(one[1]) for one in found if one) if any(found) else None
        return None


class Exposition:
    """Watches a server by the metrics `process_cpu_seconds_total` and `process_resident_memory_bytes` at a URL, several
    times a second: a shorter peak is not seen.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._cpu = 0.0
        self._memory: list[float] = []
        self._stopped = threading.Event()
        self._follower = threading.Thread()

    def start(self) -> None:
        """Raises ServiceUnavailable where nobody answers at the URL, or without these metrics."""
        self._cpu, memory = self._read()
        self._memory = [memory]
        self._stopped.clear()
        self._follower = threading.Thread(target=self._follow, daemon=True)
        self._follower.start()

    def stop(self) -> Usage:
        """What was used since `start`. Raises as it does."""
        self._stopped.set()
        self._follower.join()
        cpu, memory = self._read()
        return Usage(cpu - self._cpu, int(self._memory[0]), int(max(*self._memory, memory)))

    def _follow(self) -> None:
        while not self._stopped.wait(INTERVAL):
            with suppress(ServiceUnavailable):  # under load it may answer late; the next look comes soon
                self._memory.append(self._read()[1])

    def _read(self) -> tuple[float, float]:
        text = self._text()
        return self._value(text, "process_cpu_seconds_total"), self._value(text, "process_resident_memory_bytes")

    def _text(self) -> str:
        from http.client import HTTPException
        from urllib.request import Request, urlopen

        try:
            request = Request(self._url, headers={"Accept": "text/plain"})  # noqa: S310 - the caller's own
            with urlopen(request, timeout=TIMEOUT) as answer:  # noqa: S310 - likewise
                return str(answer.read().decode())
        except (OSError, ValueError, HTTPException) as error:
            raise ServiceUnavailable(f"{self._url}: {error}") from error

    def _value(self, text: str, name: str) -> float:
        found = re.search(rf"^{name}(?:{{[^}}]*}})? (\S+)", text, re.MULTILINE)
        if found is None:
            raise ServiceUnavailable(f"{self._url}: there is no {name}")
        return float(found[1])


def listeners(address: str) -> list[int]:
    """The processes of this host that listen at an address of `Client`; none where it is another host's, where they are
    another user's, or where the system does not say.
    """
    if address.startswith("unix:"):
        return _unix_listener(address.removeprefix("unix:").removeprefix("//"))
    found = [_TCP.search(part.strip()) for part in address.split(",")]
    ports = {int(one["port"]) for one in found if one and _is_loopback(one["host"].strip("[]"))}
    return _tcp_listeners(ports) if ports else []


def _unix_listener(path: str) -> list[int]:
    with suppress(OSError, AttributeError), socket.socket(socket.AF_UNIX) as probe:
        probe.connect(path)
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, _, _ = struct.unpack("3i", credentials)
        return [pid]
    return []


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


def _tcp_listeners(ports: set[int]) -> list[int]:
    """By the numbers of the listening sockets, which their owners have among their descriptors."""
    sockets = {f"socket:[{inode}]" for name in ("tcp", "tcp6") for inode in _listening(PROC / "net" / name, ports)}
    return sorted({pid for pid, link in _descriptors() if link in sockets})


def _listening(table: Path, ports: set[int]) -> list[str]:
    with suppress(OSError):
        rows: list[Sequence[str]] = [line.split() for line in table.read_text().splitlines()[1:]]
        return [row[9] for row in rows if row[3] == _LISTENS and int(row[1].rpartition(":")[2], 16) in ports]
    return []


def _descriptors() -> Iterable[tuple[int, str]]:
    for folder in PROC.glob("[0-9]*/fd"):
        with suppress(OSError):  # another user's, or gone
            for descriptor in folder.iterdir():
                with suppress(OSError):
                    yield int(folder.parent.name), str(descriptor.readlink())
