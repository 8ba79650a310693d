"""Measurements of a running service: what `convolver bench` does, and what any other service can be measured with."""

from __future__ import annotations

from convolver.client.bench._cells import Cell, Round
from convolver.client.bench._load import Call, Load, offer
from convolver.client.bench._processes import Exposition, Meter, Processes, Usage, listeners
from convolver.client.bench._rounds import one_round
from convolver.client.bench._shown import row
from convolver.client.bench._workloads import CALLERS, WORKLOADS, Weights, Workload, callers_for

__all__ = [
    "CALLERS",
    "WORKLOADS",
    "Call",
    "Cell",
    "Exposition",
    "Load",
    "Meter",
    "Processes",
    "Round",
    "Usage",
    "Weights",
    "Workload",
    "callers_for",
    "listeners",
    "offer",
    "one_round",
    "row",
]
