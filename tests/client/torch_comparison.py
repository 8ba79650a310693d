"""What the comparisons with torch.nn share: operands, the tolerance, and a client that says what it was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from convolver.client import Client

if TYPE_CHECKING:
    from convolver.client import Gradients

torch: Any = pytest.importorskip("torch", reason="torch is not installed: its face is not tested")

ATOL = {torch.float32: 5e-4, torch.complex64: 5e-4, torch.float64: 1e-10, torch.complex128: 1e-10}
"""Of sums of up to some thousand products of numbers around 1."""


class RecordingClient(Client):
    """Keeps what it was asked to differentiate with respect to."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.asked: list[tuple[str, ...]] = []

    def gradients(self, *operands: Any, **parameters: Any) -> Gradients:  # noqa: ANN401 - whatever Client takes
        self.asked.append((*parameters["wrt"], *(["bias"] if parameters["bias"] else [])))
        return super().gradients(*operands, **parameters)


def drawn(*shapes: tuple[int, ...], dtype: Any = torch.float64) -> list[Any]:  # noqa: ANN401 - torch's
    """Normal numbers, the same ones each time, that want gradients."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=generator, requires_grad=True) for shape in shapes]


def assert_same(output: Any, expected: Any, operands: list[Any]) -> None:  # noqa: ANN401 - tensors
    """Both outputs, and the gradients of all operands through each, are equal within the tolerance."""
    near = {"rtol": 0.0, "atol": ATOL[expected.dtype]}
    torch.testing.assert_close(output, expected, **near)
    (grad_output,) = drawn(tuple(expected.shape), dtype=expected.dtype)
    grads, expected_grads = (torch.autograd.grad(each, operands, grad_output) for each in (output, expected))
    torch.testing.assert_close(grads, expected_grads, **near)
