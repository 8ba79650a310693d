"""Callers of a Convolver service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convolver.client.bench._cells import Cell
from convolver.client.bench._load import offer
from convolver.client.bench._rounds import one_round
from convolver.client.bench._workloads import Weights, Workload, callers_for
from convolver.core.errors import ConvolverError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from convolver.client import Client
    from convolver.client.bench._processes import Meter
    from convolver.core.parameters import Parameters

    Float32 = NDArray[np.float32]

FAILURES = (ConvolverError,)
"""What a request can end with beside its answer."""


def tensors(workload: Workload) -> tuple[Float32, Float32]:
    """Its input and weight: normal, the same each time."""
    rng = np.random.default_rng(0)
    return rng.standard_normal(workload.input, np.float32), rng.standard_normal(workload.weight, np.float32)


def caller(client: Client, workload: Workload, weights: Weights, backend: str = "auto") -> Callable[[], Float32]:
    """A call of the workload, whose input travels at no cost where the server shares memory. Nothing is sent yet: a
    layer travels with the first call.
    """
    values, weight = tensors(workload)
    image = client.empty(workload.input, "float32")
    image[...] = values
    parameters: Parameters = {
        "padding": workload.padding,
        "stride": workload.stride,
        "groups": workload.groups,
        "backend": backend,
    }
    if weights == "layers":
        layer = client.layer(weight, **parameters)
        return lambda: layer(image)
    return lambda: client.convolve(image, weight, **parameters)


def cells(
    client: Client, workload: Workload, weights: Weights, asked: Sequence[int], seconds: float, server: Meter
) -> Iterator[Cell]:
    """The figures of the workload for each number of callers, each of which calls for `seconds`."""
    call = caller(client, workload, weights)
    for callers, numbers in callers_for(workload, asked).items():
        offer([call] * callers, 0.0, FAILURES)  # the first calls carry what later ones find: layers, connections, plans
        yield Cell.of(workload, numbers, callers, [one_round([call] * callers, seconds, FAILURES, server)])
