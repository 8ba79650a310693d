"""The one place where a back end and an algorithm are chosen: the cheapest, by the cost model, of those that can do the
request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from convolver.core import cost, tiling
from convolver.core.dtypes import TABLE
from convolver.core.errors import LimitExceeded, Unsupported
from convolver.core.geometry import Geometry
from convolver.core.gradients import Wanted
from convolver.core.operation import Execution
from convolver.core.plan import ChosenAlgorithm, Limits, Plan, Planned

LARGEST_TORCH_STRIDE = 2**15 - 1
"""Beyond it torch 2.13 ends the process (a segmentation fault in float32 transposed convolutions on the CPU)."""


@dataclass(frozen=True, slots=True)
class Capability:
    """What one back end on one device can do, as data, so that planning needs no back end. `device` is for people;
    `memory_bytes` is the device's memory.
    """

    name: str
    device: str
    threads: int
    memory_bytes: int
    dtypes: frozenset[str]
    algorithms: tuple[ChosenAlgorithm, ...] = ("direct",)

    def answers_to(self, backend: str) -> bool:
        """Whether `backend` ("auto", "torch", "torch:cuda", the full name) means this one."""
        return backend in ("auto", self.name) or self.name.startswith(f"{backend}:")

    def refusal(self, geometry: Geometry, algorithm: ChosenAlgorithm) -> str | None:
        """Why it cannot, or None when it can."""
        if geometry.operation.dtype not in self.dtypes:
            return f"{self.name} does not compute {geometry.operation.dtype}"
        if algorithm not in self.algorithms:
            return f"{self.name} has no {algorithm} algorithm"
        if algorithm == "fft":
            return tiling.refusal(geometry)
        strides = geometry.operation.stride if geometry.operation.transposed else ()
        if self.name.startswith("torch") and any(stride > LARGEST_TORCH_STRIDE for stride in strides):
            return f"{self.name} takes transposed strides up to {LARGEST_TORCH_STRIDE}"
        return None


class Candidate(NamedTuple):
    """What may run, and the seconds that it would take."""

    seconds: float
    plan: Plan


def choose(
    geometry: Geometry,
    execution: Execution,
    capabilities: Sequence[Capability],
    limits: Limits | None = None,
    wanted: Wanted | None = None,
) -> Plan:
    """The plan of the cheapest back end and algorithm that keeps the limits, for the output or the gradients wanted.

    Raises Unsupported, saying why each back end that may be used cannot; LimitExceeded where none keeps the limits.
    """
    refusals: list[str] = []
    candidates = list(candidates_of(geometry, execution, named(execution, capabilities), refusals, wanted))
    if not candidates:
        raise nobody(refusals)
    return first_within(limits, [each.plan for each in sorted(candidates, key=lambda c: c.seconds)])


def named(execution: Execution, capabilities: Sequence[Capability]) -> list[Capability]:
    """Those that may be used. Raises Unsupported where there are none."""
    found = [c for c in capabilities if c.answers_to(execution.backend)]
    if not found:
        raise Unsupported(
            f"backend is {execution.backend!r}; this server has {', '.join(c.name for c in capabilities)}"
        )
    return found


def nobody(refusals: Sequence[str]) -> Unsupported:
    """What is raised where no back end can do it, and why none can."""
    return Unsupported(f"no back end that may be used can do this: {'; '.join(dict.fromkeys(refusals))}")


P = TypeVar("P", bound=Planned)


def first_within(limits: Limits | None, plans: Sequence[P]) -> P:
    """The first plan that keeps the limits. Raises LimitExceeded with what is wrong with the first of all."""
    if limits is None:
        return plans[0]
    refusals = []
    for plan in plans:
        try:
            limits.check(plan)
        except LimitExceeded as refusal:
            refusals.append(refusal)
        else:
            return plan
    raise refusals[0]


def candidates_of(
    geometry: Geometry,
    execution: Execution,
    capabilities: Sequence[Capability],
    refusals: list[str],
    wanted: Wanted | None = None,
) -> Iterator[Candidate]:
    """Each back end with each algorithm that can do it; what speaks against the others is added to `refusals`."""
    algorithms: tuple[ChosenAlgorithm, ...] = ("direct", "fft")
    if execution.algorithm != "auto":
        algorithms = (execution.algorithm,)
    for capability in capabilities:
        for algorithm in algorithms:
            refusal = capability.refusal(geometry, algorithm)
            if algorithm == "fft":
                refusal = _no_fft(geometry, execution, wanted) or refusal
            if refusal is None:
                name = capability.name
                threads = cost.threads_that_pay(geometry, name, capability.threads, algorithm, wanted)
                seconds, work, workspace = cost.estimate(geometry, name, threads, algorithm, wanted)
                yield Candidate(seconds, Plan(geometry, execution, name, algorithm, threads, work, workspace, wanted))
            elif execution.algorithm != "auto" or algorithm == "direct":
                refusals.append(refusal)


def _no_fft(geometry: Geometry, execution: Execution, wanted: Wanted | None) -> str | None:
    if execution.deterministic or TABLE[geometry.operation.dtype].exact:
        return "an FFT is neither exact nor deterministic"
    return "gradients are computed by direct sums alone" if wanted else None
