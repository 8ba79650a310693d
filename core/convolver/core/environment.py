"""What has to be said to libraries before they are loaded: they read their environment once."""

from __future__ import annotations

import os

OPENBLAS_TIMEOUT = 14
"""NumPy's OpenBLAS keeps its threads spinning for 2^26 cycles after a product, in case another follows; torch's threads
meanwhile wait for the cores, and small convolutions took up to ten times as long. 2^14 cycles cost NumPy nothing.
"""

GOMP_SPINS = 1000
"""torch's OpenMP spins 300,000 times at each barrier before it sleeps: on busy cores a convolution of 40 us took 36 ms,
and with so few 0.2 ms, while on idle ones nothing changed.
"""


ONEDNN_PRIMITIVES = 1024
"""oneDNN keeps what it made for as many convolutions and reorderings, and resident memory grows until then. Fewer save
little and cost much (docs/decisions/0015-bounded-caches.md).
"""

OPENBLAS_THREADS = 1
"""With two, callers that multiply at the same time wait for one another's threads: 3 ms became 250. Large sums of the
reference have threads of their own (backends/threads.py).
"""


def prepare(threads: int) -> None:
    """Settings for libraries that are not loaded yet, where the user has not made them. torch's own number of threads
    holds for its own loops alone; its Fourier transforms (MKL) take OpenMP's.
    """
    settings = {
        "OPENBLAS_NUM_THREADS": OPENBLAS_THREADS,
        "OPENBLAS_THREAD_TIMEOUT": OPENBLAS_TIMEOUT,
        "OMP_NUM_THREADS": threads,
        "GOMP_SPINCOUNT": GOMP_SPINS,
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": ONEDNN_PRIMITIVES,
    }
    for name, value in settings.items():
        os.environ.setdefault(name, str(value))


def numpy_has_one_thread() -> bool:
    """Whether OpenBLAS was told so when NumPy was loaded."""
    told = (os.environ.get(name) for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"))
    return next(filter(None, told), "") == "1"
