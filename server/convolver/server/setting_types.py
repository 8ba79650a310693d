"""What the values of settings are: how each is written, what it may be, and what it is where nobody has set it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ByteSize, Field

from convolver.server.address import checked
from convolver.server.cores import cores

if TYPE_CHECKING:
    from pydantic import ValidationInfo

LARGEST = 2**63 - 1
LONGEST = 2_000_000.0
"""Seconds, 23 days: gRPC counts milliseconds in 32 bits."""

_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


class Bytes(ByteSize):
    """A number of bytes, read from and shown as `64MiB`."""

    def __str__(self) -> str:
        """The largest binary unit that divides it: 64MiB, 1000B."""
        power = min((int(self) & -int(self)).bit_length() - 1, 69) // 10 if self else 0
        return f"{int(self) >> 10 * power}{('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB')[power]}"


def split_commas(value: object) -> object:
    """The parts of a text; what is no text as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def absent(value: object) -> object:
    """None for "none" and for nothing at all."""
    return None if value in ("", "none") else value


def _checked_bytes(value: object) -> object:
    """ByteSize alone would read `12,000` as 12 and `64MiB/s` as 64 MiB."""
    if isinstance(value, str) and not re.fullmatch(r"\s*\d*\.?\d+\s*[A-Za-z]*\s*", value):
        raise ValueError("bytes are written 64MiB, 500MB or 1048576")
    return value


def _integral(value: object) -> object:
    """`1e12` as the number it is, which one likes to write and int() refuses."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?[eE]\d{1,2}", value) else value


def lower(value: object) -> object:
    """A text in small letters."""
    return value.lower() if isinstance(value, str) else value


def _never(seconds: float | None) -> float | None:
    return seconds or None


def _share_of_the_cores(threads: int, info: ValidationInfo) -> int:
    return threads or max(1, cores() // int(info.data.get("workers", 1)))


def share(budget: Bytes, workers: int) -> Bytes:
    """What each of so many processes has of a budget of all."""
    return Bytes(max(budget // workers, 1))


def half_the_memory() -> Bytes:
    """Half of what this process may use, the machine's memory or its container's limit, in bytes and whole MiB."""
    written = [path.read_text().strip() for path in _CGROUP_LIMITS if path.is_file()]
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    smallest = min([machine, *(int(limit) for limit in written if limit.isdigit())])
    return Bytes(max(smallest >> 21, 1) << 20)


def the_memory_budget(settings: dict[str, Any]) -> Bytes:
    """What `shared_memory_budget` is unless it is set, in bytes: inputs and outputs that would otherwise be within it
    are there.
    """
    budget: Bytes = settings["memory_budget"]
    return budget


def a_workers_memory_budget(settings: dict[str, Any]) -> Bytes:
    """What `max_request_bytes` is unless it is set, in bytes: one request alone may take all that its process has."""
    return share(settings["memory_budget"], settings.get("workers", 1))


def a_quarter_of_the_memory_budget(settings: dict[str, Any]) -> Bytes:
    """What `layer_budget` is unless it is set, in bytes; it comes on top of the memory budget."""
    return Bytes(max(settings["memory_budget"] // 4, 1))


Address = Annotated[str, AfterValidator(checked)]
Size = Annotated[Bytes, BeforeValidator(_checked_bytes), Field(gt=0, le=LARGEST)]
Count = Annotated[int, BeforeValidator(_integral), Field(gt=0, le=LARGEST)]
Threads = Annotated[int, AfterValidator(_share_of_the_cores), Field(ge=0, le=1024)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
SomeSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Age = Annotated[
    Annotated[float, Field(ge=0, le=LONGEST, allow_inf_nan=False)] | None,
    BeforeValidator(absent),
    AfterValidator(_never),
]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(lower)]
