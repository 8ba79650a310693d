"""Memory that torch does not get. It says so in a RuntimeError, in the words of whichever library had asked for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "ALLOC_FAILED")
"""Of torch's allocators, of C++, and of cuBLAS, cuDNN and cuFFT."""


def within_memory(device: torch.device, attempt: Callable[[], T]) -> T:
    """What `attempt` returns; on CUDA tried again without what torch keeps of memory that it has freed, which a large
    tensor may need in one piece. Raises MemoryError with torch's text.
    """
    text = ""
    for _ in range(2 if device.type == "cuda" else 1):
        try:
            return attempt()
        except RuntimeError as error:
            text = str(error)
            if not any(words in text for words in _NO_MEMORY):
                raise
        torch.cuda.empty_cache()  # here the error, and with it the tensors of its frames, are gone
    raise MemoryError(text)
