"""All benchmarks, one after the other: python -m benchmarks."""

from __future__ import annotations

import runpy

for name in ("service", "codec", "remote", "stay", "layers", "large"):
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
