"""The one place where a back end and an algorithm are chosen: the cheapest, by the cost model, of those that can do the
request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from convolver.core import cost
from convolver.core.dtypes import TABLE
from convolver.core.errors import Unsupported
from convolver.core.geometry import Geometry
from convolver.core.operation import Execution
from convolver.core.plan import ChosenAlgorithm, Plan


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
        return None


class _Candidate(NamedTuple):
    estimate: cost.Estimate
    capability: Capability
    algorithm: ChosenAlgorithm


def choose(geometry: Geometry, execution: Execution, capabilities: Sequence[Capability]) -> Plan:
    """The plan of the cheapest back end and algorithm.

    Raises Unsupported, saying why each back end that may be used cannot.
    """
    named = [c for c in capabilities if c.answers_to(execution.backend)]
    if not named:
        raise Unsupported(
            f"backend is {execution.backend!r}; this server has {', '.join(c.name for c in capabilities)}"
        )
    refusals: list[str] = []
    candidates = list(_candidates(geometry, execution, named, refusals))
    if not candidates:
        raise Unsupported(f"no back end that may be used can do this: {'; '.join(refusals)}")
    estimate, capability, algorithm = min(candidates, key=lambda c: c.estimate.seconds)
    return Plan(
        geometry, execution, capability.name, algorithm, capability.threads, estimate.work, estimate.workspace_bytes
    )


def _candidates(
    geometry: Geometry, execution: Execution, capabilities: Sequence[Capability], refusals: list[str]
) -> Iterator[_Candidate]:
    exact_only = execution.deterministic or TABLE[geometry.operation.dtype].exact
    everything: tuple[ChosenAlgorithm, ...] = ("direct",) if exact_only else ("direct", "fft")
    wanted = everything if execution.algorithm == "auto" else (execution.algorithm,)
    for capability in capabilities:
        for algorithm in wanted:
            refusal = (
                "an FFT is neither exact nor deterministic"
                if algorithm not in everything
                else capability.refusal(geometry, algorithm)
            )
            if refusal is None:
                yield _Candidate(cost.estimate(geometry, capability.name, capability.threads), capability, algorithm)
            elif execution.algorithm != "auto" or algorithm == "direct":
                refusals.append(refusal)
