"""What has to be said to libraries before they are loaded: they read their environment once."""

from __future__ import annotations

import os

SPIN = "14"
"""NumPy's OpenBLAS keeps its threads spinning for 2^26 cycles after a product, in case another follows; torch's threads
meanwhile wait for the cores, and small convolutions took up to ten times as long. 2^14 cycles cost NumPy nothing.
"""


def prepare(threads: int) -> None:
    """Settings for libraries that are not loaded yet, where the user has not made them."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(threads))
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", SPIN)
