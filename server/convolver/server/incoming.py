"""The bytes of tensors as they come in pieces, written where they will be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from convolver.core.chunks import Filling
from convolver.core.errors import InvalidConvolution
from convolver.core.stack_plan import tensor_bytes
from convolver.core.tensors import from_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from convolver.core.backends import Array
    from convolver.core.operation import Tensor

MOST_NAMED = 4
"""Tensors that an error names."""


class IncomingTensors:
    """Tensors by their names, whose bytes come one tensor after the other."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        # The system gives memory for what is written, not for what is said.
        self._buffers = {name: np.empty(tensor_bytes(tensor), np.uint8) for name, tensor in tensors.items()}
        self._filling = Filling(self._buffers.values())

    @property
    def names(self) -> Iterable[str]:
        """Of the tensors, in their order."""
        return self._tensors

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self._filling.bytes

    @property
    def come(self) -> int:
        """How many bytes are there."""
        return self._filling.come

    def take(self, data: memoryview) -> None:
        """The next bytes. Raises InvalidConvolution for more than there are."""
        if self.come + data.nbytes > self.bytes:
            self._refuse(f"{self.come + data.nbytes} bytes of data or more came")
        self._filling.take(data)

    def check_complete(self) -> None:
        """Raises InvalidConvolution where bytes are missing."""
        if self.come < self.bytes:
            self._refuse(f"{self.come} bytes of data came")

    def array(self, name: str) -> Array:
        """The tensor's array, read-only, be it that its bytes are still to come; those of bools have to be there.
        Raises InvalidConvolution where a bool is neither 0 nor 1.
        """
        return from_bytes(self._buffers[name].data, self._tensors[name], name)

    def arrays(self) -> dict[str, Array]:
        """All of them. Raises InvalidConvolution where bytes are missing, or a bool is neither 0 nor 1."""
        self.check_complete()
        return {name: self.array(name) for name in self._tensors}

    def _refuse(self, what: str) -> None:
        named = [f"{name} {tensor.shape} of {tensor.dtype}" for name, tensor in self._tensors.items()]
        tensors = " and ".join(named) if len(named) <= MOST_NAMED else f"{len(named)} tensors"
        raise InvalidConvolution(f"{what}, but there are {self.bytes} of {tensors}", "data")
