"""What can be wrong with the files and kernels that a user hands in.

ConvolverError
├── KernelError    the kernel's name, text or file is no kernel
├── FilterError    this picture or array and this kernel do not go together
└── PictureError   a file cannot be read, filtered or written; `path` says which
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from convolver.core.errors import ConvolverError

if TYPE_CHECKING:
    from pathlib import Path


class KernelError(ConvolverError, ValueError):
    """The kernel's name, text or file is no kernel."""


class FilterError(ConvolverError, ValueError):
    """This picture or array and this kernel do not go together."""


class PictureError(ConvolverError):
    """A file cannot be read, filtered or written. Its message starts with `path`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
