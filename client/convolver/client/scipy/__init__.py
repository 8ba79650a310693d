"""Functions of SciPy, computed by a Convolver service: the same arguments, defaults and results; SciPy need not be
installed. Each takes a `client` besides; without one it uses this process's own (CONVOLVER_ADDRESS, or an embedded
server).
"""

from __future__ import annotations

from convolver.client.scipy import ndimage, signal

__all__ = ["ndimage", "signal"]
