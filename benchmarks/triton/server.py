"""Triton with the workloads as models: `python -m benchmarks.triton.server THREADS NAME...` of its own environment.

Serves on a free port of 127.0.0.1, prints it, and ends when its standard input does. Tuned as its pages say: dynamic
batches, as large as memory allows, of what waits while another one is computed; inference mode; no metrics.
"""

from __future__ import annotations

import os
import socket
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pytriton.decorators import batch  # type: ignore[import-not-found]  # only in the environment of its own
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor  # type: ignore[import-not-found]  # likewise
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]  # likewise

from benchmarks._convolutions import convolution
from convolver.client.bench import WORKLOADS
from convolver.client.bench._service import tensors

if TYPE_CHECKING:
    from convolver.client.bench import Workload

LARGEST_BATCH = 64
BATCH_BYTES = 256 << 20
"""Of the inputs and outputs of one batch."""


def serve(threads: int, names: list[str]) -> None:
    """Until standard input ends."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Triton's own process writes there, in the middle of our lines
    torch.set_num_threads(threads)
    grpc_port, http_port = _free_port(), _free_port()
    config = TritonConfig(
        grpc_address="127.0.0.1",
        http_address="127.0.0.1",
        grpc_port=grpc_port,
        http_port=http_port,
        allow_metrics=False,
    )
    with Triton(config=config) as triton:
        for name in names:
            _bind(triton, WORKLOADS[name])
        triton.run()
        print(grpc_port, file=told, flush=True)
        sys.stdin.read()


def _bind(triton: Any, workload: Workload) -> None:  # noqa: ANN401 - PyTriton is not installed where types are checked
    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, weight = tensors(workload)
    run = convolution(workload, torch.from_numpy(weight), device)

    @batch  # type: ignore[untyped-decorator]  # likewise
    def infer(image: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        return {"output": run(torch.from_numpy(image)).numpy()}

    own = workload.input[0]
    largest = own * max(1, min(LARGEST_BATCH // own, BATCH_BYTES // workload.bytes))
    triton.bind(
        workload.name,
        infer,
        inputs=[Tensor(name="image", dtype=np.float32, shape=workload.input[1:])],
        outputs=[Tensor(name="output", dtype=np.float32, shape=workload.output[1:])],
        config=ModelConfig(max_batch_size=largest, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
    )


def _free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])
