"""The codec of convolver.core.wire against plain protobuf, and the ways to join: python -m benchmarks.codec."""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks._measure import RESULTS, Table, duration, interleave, machine, medians, write
from convolver.core.wire import join, split
from convolver.v1 import convolution_pb2, convolution_service_pb2, tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Arrays = Sequence[NDArray[np.float32]]

Request = convolution_service_pb2.ConvolveRequest
# Name, shape of the input (float32), rounds.
SIZES = {
    "50 KB": ((1, 3, 64, 64), 4000),
    "1 MB": ((1, 4, 256, 256), 1000),
    "16 MB": ((4, 4, 512, 512), 60),
    "64 MB": ((4, 4, 1024, 1024), 25),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.codec", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of codec.json and codec.md")
    out = parser.parse_args(arguments).out
    against_protobuf = {size: _against_protobuf(*_tensors(shape), rounds) for size, (shape, rounds) in SIZES.items()}
    ways = {size: _ways_to_join(*_tensors(shape), rounds) for size, (shape, rounds) in SIZES.items()}
    payload = {
        "machine": machine("protobuf", "numpy"),
        "unit": "seconds, median",
        "rounds": {size: rounds for size, (_, rounds) in SIZES.items()},
        "against_protobuf": against_protobuf,
        "ways_to_join": ways,
    }
    write("codec", payload, [_codec_table(against_protobuf), _ways_table(ways)], out)


def protobuf_send(convolution: convolution_pb2.Convolution, arrays: Arrays) -> bytes:
    """The obvious way to send."""
    return Request(convolution=convolution, data=[array.tobytes() for array in arrays]).SerializeToString()


def protobuf_receive(message: bytes) -> list[NDArray[np.float32]]:
    """The obvious way to receive."""
    return [np.frombuffer(entry, np.float32) for entry in Request.FromString(message).data]


def codec_send(convolution: convolution_pb2.Convolution, arrays: Arrays) -> bytes:
    """Let protobuf write the header, and join the arrays to it."""
    return join(Request(convolution=convolution).SerializeToString(), arrays)


def codec_receive(message: bytes) -> list[NDArray[np.float32]]:
    """Split the arrays off, and let protobuf parse the rest."""
    header, entries = split(message)
    Request.FromString(header)
    return [np.frombuffer(entry, np.float32) for entry in entries]


def _against_protobuf(convolution: convolution_pb2.Convolution, arrays: Arrays, rounds: int) -> dict[str, float]:
    plain, joined = protobuf_send(convolution, arrays), codec_send(convolution, arrays)
    _require_equal(arrays, protobuf_receive(joined), codec_receive(plain), codec_receive(joined))
    candidates: dict[str, Callable[[], object]] = {
        "protobuf": lambda: protobuf_receive(protobuf_send(convolution, arrays)),
        "codec": lambda: codec_receive(codec_send(convolution, arrays)),
        "protobuf send": lambda: protobuf_send(convolution, arrays),
        "codec send": lambda: codec_send(convolution, arrays),
        "protobuf receive": lambda: protobuf_receive(plain),
        "codec receive": lambda: codec_receive(joined),
    }
    return medians(interleave(candidates, rounds))


def _require_equal(arrays: Arrays, *received: Arrays) -> None:
    for answer in received:
        for sent, came in zip(arrays, answer, strict=True):
            np.testing.assert_array_equal(sent.ravel(), came)


def _ways_to_join(convolution: convolution_pb2.Convolution, arrays: Arrays, rounds: int) -> dict[str, float]:
    """Each makes the same bytes of the same parts; 'one copy' is the least that any could take."""
    header = Request(convolution=convolution).SerializeToString()
    parts: list[bytes | memoryview] = [header, *(array.data.cast("B") for array in arrays)]
    size = sum(len(part) for part in parts)
    candidates: dict[str, Callable[[], bytes]] = {
        "bytes.join": lambda: b"".join(parts),
        "bytearray, appended": lambda: bytes(_appended(parts)),
        "bytearray, preallocated": lambda: bytes(_preallocated(parts, size)),
        "BytesIO": lambda: _written(parts),
        "numpy.concatenate": lambda: np.concatenate([np.frombuffer(part, np.uint8) for part in parts]).tobytes(),
        "tobytes of each, then join": lambda: b"".join(bytes(part) for part in parts),
        "one copy": arrays[-1].tobytes,
    }
    return medians(interleave(candidates, rounds))


def _appended(parts: Sequence[bytes | memoryview]) -> bytearray:
    message = bytearray()
    for part in parts:
        message += part
    return message


def _preallocated(parts: Sequence[bytes | memoryview], size: int) -> bytearray:
    message, position = bytearray(size), 0
    view = memoryview(message)
    for part in parts:
        view[position : position + len(part)] = part
        position += len(part)
    return message


def _written(parts: Sequence[bytes | memoryview]) -> bytes:
    message = BytesIO()
    for part in parts:
        message.write(part)
    return message.getvalue()


def _tensors(shape: tuple[int, ...]) -> tuple[convolution_pb2.Convolution, Arrays]:
    """A convolution of eight 3x3 kernels over an input of `shape`, and its tensors."""
    random = np.random.default_rng(2024)
    arrays = [random.standard_normal(size, np.float32) for size in ((8, shape[1], 3, 3), shape)]
    weight, input = (tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=array.shape) for array in arrays)
    layer = convolution_pb2.Layer(
        definition=convolution_pb2.LayerDefinition(
            parameters=convolution_pb2.Parameters(stride=[1, 1], dilation=[1, 1], groups=1), weight=weight
        ),
        weight_source=tensor_pb2.TensorSource(index=0),
    )
    source = tensor_pb2.TensorSource(index=1)
    return convolution_pb2.Convolution(layers=[layer], input=input, input_source=source), arrays


def _codec_table(results: dict[str, dict[str, float]]) -> Table:
    columns = ["tensors", "protobuf", "codec", "ratio", "protobuf, send / receive", "codec, send / receive"]
    title = "Build, serialise, parse, access: the codec against plain protobuf"
    return Table(title, columns, [_codec_row(size, times) for size, times in results.items()])


def _codec_row(size: str, times: dict[str, float]) -> list[str]:
    phases = [
        f"{duration(times[f'{name} send'])} / {duration(times[f'{name} receive'])}" for name in ("protobuf", "codec")
    ]
    ratio = times["protobuf"] / times["codec"]
    return [size, duration(times["protobuf"]), duration(times["codec"]), f"{ratio:.1f}", *phases]


def _ways_table(results: dict[str, dict[str, float]]) -> Table:
    ways = next(iter(results.values()))
    rows = [[way, *(duration(times[way]) for times in results.values())] for way in ways]
    return Table("Ways to join header and arrays to bytes", ["way", *results], rows)


if __name__ == "__main__":
    main()
