"""The real server, with a back end that misbehaves where a request asks for it: python -m tests.faults.faulty_server.

It asks by the number of its channels, and by the first value of its input for what shall happen. A request that runs in
pieces may have that value in a later item of its batch, so that a later piece misbehaves.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from convolver.core import backends
from convolver.server.__main__ import main

if TYPE_CHECKING:
    from collections.abc import Callable

    from convolver.core.backends import Array, Backend, Outcome, Prepared
    from convolver.core.plan import Plan

CHANNELS = 13
"""Of the inputs that are looked at."""

HANG_SECONDS = 0.4
MOST_BYTES = 2**60
"""More than any machine has, so that whoever asks for it is refused."""

NAN = "gives NaN"


def _raises(error: type[BaseException], *arguments: object) -> Callable[[], NoReturn]:
    def misbehave() -> NoReturn:
        raise error(*arguments)

    return misbehave


def _runs_out_of_torchs_memory() -> None:
    import torch

    torch.empty(MOST_BYTES, dtype=torch.uint8)


MISBEHAVIOURS: dict[str, Callable[[], object]] = {
    "raises RuntimeError": _raises(RuntimeError, "a kernel has failed"),
    "raises StopIteration": _raises(StopIteration),
    "raises SystemExit": _raises(SystemExit, 3),
    "raises KeyboardInterrupt": _raises(KeyboardInterrupt),
    "raises MemoryError": lambda: np.empty(MOST_BYTES, np.uint8),
    "runs out of torch's memory": _runs_out_of_torchs_memory,
    "hangs": lambda: time.sleep(HANG_SECONDS),
    NAN: lambda: None,
}


def value_of(misbehaviour: str) -> float:
    """The value that asks for it."""
    return -1000.0 - list(MISBEHAVIOURS).index(misbehaviour)


def _asked(input: Array) -> str | None:
    if input.ndim < 3 or input.shape[1] != CHANNELS or not input.size:
        return None
    return next((name for name in MISBEHAVIOURS if value_of(name) == input.flat[0]), None)


class FaultyBackend:
    """A back end whose `run` does what it is asked for first."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the back end has
        return getattr(self._backend, name)

    def run(self, plan: Plan, prepared: Prepared, input: Array, out: Array | None = None) -> Outcome:
        asked = _asked(input)
        if asked:
            MISBEHAVIOURS[asked]()
        outcome = self._backend.run(plan, prepared, input, out)
        if asked == NAN:
            outcome.output[...] = np.nan
        return outcome


if __name__ == "__main__":
    real = backends.available
    backends.available = lambda name, threads: [FaultyBackend(backend) for backend in real(name, threads)]
    main()
