"""A convolution by the service as autograd sees it: one call forward, one backward, and no second derivative."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch.autograd.function import FunctionCtx

from convolver.client._client_shared import check_rank
from convolver.client._default_client import default_client
from convolver.core.errors import InvalidConvolution, Unsupported

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from convolver.client import Client
    from convolver.core.parameters import Parameters


def convolved(
    ndim: int,
    operands: tuple[Tensor, Tensor, Tensor | None],
    client: Client | None,
    **parameters: Unpack[Parameters],
) -> Tensor:
    """The convolution of input, weight and bias, differentiable in each of them; under torch.autocast in its type.

    Raises InvalidConvolution unless the weight has `ndim` spatial dimensions, and for an activation where gradients are
    wanted; else as `Client.convolve`.
    """
    check_rank(operands[1], ndim, parameters)
    activation = parameters.get("activation")
    if activation not in (None, "none") and torch.is_grad_enabled() and any(map(_is_variable, operands)):
        raise InvalidConvolution(
            f"activation is {activation!r}, which is not differentiated; apply torch's to the output", "activation"
        )
    caller = default_client() if client is None else client
    output: Tensor = Convolution.apply(*_autocast(*operands), caller, parameters)  # type: ignore[no-untyped-call]  # torch's
    return output


def _is_variable(operand: Tensor | None) -> bool:
    return operand is not None and operand.requires_grad


def _autocast(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    device = input.device.type
    if not torch.is_autocast_enabled(device):
        return input, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return _cast(input, dtype), _cast(weight, dtype), None if bias is None else _cast(bias, dtype)


def _cast(operand: Tensor, dtype: torch.dtype) -> Tensor:
    """As torch.autocast does: float64 and complex operands stay."""
    return operand.to(dtype) if operand.is_floating_point() and operand.dtype != torch.float64 else operand


class Convolution(torch.autograd.Function):
    """`Client.convolve` of input, weight and bias, differentiable in each of them."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's FunctionCtx does not declare what a function may set on it
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        client: Client,
        parameters: Parameters,
    ) -> Tensor:
        """The output."""
        ctx.save_for_backward(input, weight)
        ctx.client, ctx.parameters = client, parameters
        output: Tensor = client.convolve(input, weight, bias, **parameters)
        return output

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - as above
        """The gradients that are needed; no others are computed."""
        needed = ctx.needs_input_grad[:3]
        operands = (*ctx.saved_tensors, *grad_outputs)
        gradients = Gradients.apply(*operands, needed, ctx.client, ctx.parameters)  # type: ignore[no-untyped-call]  # torch's
        return (*gradients, None, None)


class Gradients(torch.autograd.Function):
    """`Client.gradients`, as a function of its own: what depends on it can tell that it is not differentiable.

    torch's once_differentiable says so only where grad_output is itself being differentiated. A penalty on the
    gradients of a plain sum would pass there, with its part of the weight's gradient missing.
    """

    @staticmethod
    def forward(
        _ctx: FunctionCtx,
        input: Tensor,
        weight: Tensor,
        grad_output: Tensor,
        needed: tuple[bool, bool, bool],
        client: Client,
        parameters: Parameters,
    ) -> tuple[Tensor | None, ...]:
        """The gradients with respect to input, on its device, and to weight and bias, on the weight's."""
        wrt = [name for name, wanted in zip(("input", "weight"), needed[:2], strict=True) if wanted]
        given: Parameters = {**parameters, "algorithm": "direct"}  # a forward pass by FFT has gradients by direct sums
        found = client.gradients(input, weight, grad_output, wrt=wrt, bias=needed[2], **given)
        of_layer = (None if grad is None else grad.to(weight.device) for grad in (found.weight, found.bias))
        return found.input, *of_layer

    @staticmethod
    def backward(_ctx: FunctionCtx, *_: Tensor) -> NoReturn:
        """Raises Unsupported."""
        raise Unsupported(
            "the service has first derivatives alone: gradients of a convolution's gradients need torch.nn's"
        )
