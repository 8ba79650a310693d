"""The words that the command line offers, in a module that does not load NumPy.

The tests hold them against `convolver.core.parameters`.
"""

from __future__ import annotations

from typing import Literal

Range = Literal["clip", "absolute", "offset", "stretch"]
SpatialDimensions = Literal[2, 3]
PicturePadding = Literal["same", "valid", "full"]
PaddingMode = Literal["zeros", "constant", "reflect", "symmetric", "replicate", "circular"]
