"""The targets by their names, and the module of each: known without an import of what is fuzzed, which is instrumented
as it is imported.
"""

from __future__ import annotations

MODULES = {
    "wire": "wire",
    "Convolve": "calls",
    "ConvolveStream": "calls",
    "ConvolveChunked": "calls",
    "Plan": "calls",
    "GetInfo": "calls",
    "PutLayer": "calls",
    "GetLayer": "calls",
    "ListLayers": "calls",
    "DeleteLayer": "calls",
    "Hold": "hold",
    "answers": "answers",
    "status": "answers",
}
"""The rpcs of all services under their own names, the codec below them, and what a client reads."""

PLANTED = {"planted-error": "planted", "planted-hang": "planted", "planted-allocation": "planted"}
"""Faults that were put there on purpose, to see that they are found."""
