"""Pictures and volumes: read them, filter them through a `Client`, write them. All but `.npy` needs `[pictures]`.

kernel = parse_kernel("gaussian:sigma=2")
with Client() as client:
    write_source(Path("soft.png"), filter_picture(client, read_source(Path("photo.png")), Filter(kernel)))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convolver.client.pictures._convolver import Convolver, Recorder
    from convolver.client.pictures._filter import Filter, filter_array, filter_picture
    from convolver.client.pictures._formats import read_source, suited, write_source
    from convolver.client.pictures._kernel_text import parse_kernel, read_kernel
    from convolver.client.pictures._kernels import Kernel
    from convolver.client.pictures._pictures import Page, Picture
    from convolver.client.pictures.errors import FilterError, KernelError, PictureError

_HOMES = {
    "Convolver": "_convolver",
    "Filter": "_filter",
    "FilterError": "errors",
    "Kernel": "_kernels",
    "KernelError": "errors",
    "Page": "_pictures",
    "Picture": "_pictures",
    "PictureError": "errors",
    "Recorder": "_convolver",
    "filter_array": "_filter",
    "filter_picture": "_filter",
    "parse_kernel": "_kernel_text",
    "read_kernel": "_kernel_text",
    "read_source": "_formats",
    "suited": "_formats",
    "write_source": "_formats",
}

__all__ = [
    "Convolver",
    "Filter",
    "FilterError",
    "Kernel",
    "KernelError",
    "Page",
    "Picture",
    "PictureError",
    "Recorder",
    "filter_array",
    "filter_picture",
    "parse_kernel",
    "read_kernel",
    "read_source",
    "suited",
    "write_source",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the name stands for
    """Load a name's home when it is first asked for, so that `convolver --help` loads no NumPy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
