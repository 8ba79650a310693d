"""A caller of that service, with Triton's own client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tritonclient import grpc as triton  # type: ignore[import-not-found]  # only in the environment of its own
from tritonclient.utils import InferenceServerException  # type: ignore[import-not-found]  # likewise

from convolver.client.bench._service import tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from convolver.client.bench import Workload

FAILURES: tuple[type[Exception], ...] = (InferenceServerException,)


def caller(address: str, workload: Workload) -> Callable[[], Any]:
    """A call of the workload."""
    image, _ = tensors(workload)
    client = triton.InferenceServerClient(address)
    output = triton.InferRequestedOutput("output")

    def call() -> Any:  # noqa: ANN401 - an array, which the client does not say
        entry = triton.InferInput("image", image.shape, "FP32")
        entry.set_data_from_numpy(image)
        return client.infer(workload.name, [entry], outputs=[output]).as_numpy("output")

    return call
