"""Who computes, seen from the pictures: `Client` fits, and so does whatever stands in for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing import Unpack

    from numpy.typing import NDArray

    from convolver.core.parameters import Parameters


class Plan(Protocol):
    """What of `convolver.core.plan.Plan` is told to the user."""

    @property
    def backend(self) -> str: ...
    @property
    def algorithm(self) -> str: ...
    @property
    def macs(self) -> int: ...
    @property
    def output_shape(self) -> tuple[int, ...]: ...


class Answer(Protocol):
    """What `Client.run` returns."""

    @property
    def output(self) -> NDArray[Any]: ...
    @property
    def plan(self) -> Plan: ...


class Convolver(Protocol):
    """Whoever runs convolutions as `Client.run` does."""

    def run(self, input: NDArray[Any], weight: NDArray[Any], /, **parameters: Unpack[Parameters]) -> Answer: ...


class Recorder:
    """A convolver that hands every call on to another and keeps account.

    Attributes:
        plans: What was followed, one for each call that was answered.
        seconds: From each call to its answer.
    """

    def __init__(self, convolver: Convolver) -> None:
        self._convolver = convolver
        self.plans: list[Plan] = []
        self.seconds: list[float] = []

    def run(self, input: NDArray[Any], weight: NDArray[Any], /, **parameters: Unpack[Parameters]) -> Answer:
        """As `Client.run`."""
        start = time.perf_counter()
        answer = self._convolver.run(input, weight, **parameters)
        self.seconds.append(time.perf_counter() - start)
        self.plans.append(answer.plan)
        return answer

    def __str__(self) -> str:
        ran = " and ".join(sorted({f"{plan.backend} {plan.algorithm}" for plan in self.plans}))
        macs = sum(plan.macs for plan in self.plans)
        return f"{ran}, {macs / 1e6:,.1f} million MACs, {1e3 * sum(self.seconds):,.1f} ms"
