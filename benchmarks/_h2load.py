"""Load from nghttp2's h2load, which costs the machine less than any client of ours: unary calls of one message."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

from convolver.core.wire import join
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import convolution_service_pb2 as service_pb
from convolver.v1 import tensor_pb2

METHOD = "convolver.v1.ConvolutionService/Convolve"
WINDOW_BITS = 24
"""Of HTTP/2's flow control, so that an answer needs no round of its own."""


def request(digest: str, shape: tuple[int, ...], data: memoryview | bytes) -> bytes:
    """A ConvolveRequest for a layer that the server holds."""
    input = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape)
    convolution = pb.Convolution(layers=[pb.Layer(digest=digest)], input=input)
    return join(service_pb.ConvolveRequest(convolution=convolution).SerializeToString(), [memoryview(data)])


def run(
    address: str,
    message: bytes,
    seconds: float,
    connections: int,
    streams: int,
    rate: float | None = None,
    caller: str | None = None,
) -> float:
    """Calls for so many seconds, with as many in flight as there are streams on each connection; or at a rate, calls a
    second, while there are. They are those of one caller, if it has a name, else of as many as there are connections.
    Gives how many ended in a second. Raises FileNotFoundError where h2load is not installed.
    """
    if shutil.which("h2load") is None:
        raise FileNotFoundError("h2load is not installed; Debian has it in nghttp2-client")
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        command = ["h2load", "-c", f"{connections}", "-m", f"{streams}", "-D", f"{seconds:.0f}", "-d", f"{body}"]
        command += ["-w", f"{WINDOW_BITS}", "-W", f"{WINDOW_BITS + 2}", "-H", "content-type: application/grpc"]
        command += ["-H", "te: trailers", f"http://{address}/{METHOD}"]
        if caller:
            command[1:1] = ["-H", f"convolver-client: {caller}"]
        if rate:
            command[1:1] = ["--rps", f"{max(1.0, rate / connections):.1f}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _read(said, seconds)


def _read(said: str, seconds: float) -> float:
    """Raises ValueError for what h2load never says."""
    ended = re.search(r"requests: .* (\d+) done", said)
    if not ended:
        raise ValueError(f"h2load said {said!r}")
    return int(ended[1]) / seconds
