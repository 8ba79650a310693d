"""The convolutions of torch.nn.functional: its signatures, its results and its gradients. Each takes a `client` besides
(None: this process's own), and the parameters of `Client.conv2d` that torch lacks: `padding_mode`, `backend`, `timeout`
and so on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from convolver.client.torch._autograd import convolved

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Unpack

    from convolver.client import Client
    from convolver.core.parameters import MoreParameters, Padding, Sizes

__all__ = ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]


def conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    client: Client | None = None,
    **more: Unpack[MoreParameters],
) -> Tensor:
    """torch.nn.functional.conv1d: `input` (N, C, L) or (C, L), `weight` (O, C/groups, K), `bias` (O,).

    Raises what `Client.convolve` raises; so does the backward pass, for what happens on the way.
    """
    operands = (input, weight, bias)
    return convolved(1, operands, client, stride=stride, padding=padding, dilation=dilation, groups=groups, **more)


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    client: Client | None = None,
    **more: Unpack[MoreParameters],
) -> Tensor:
    """torch.nn.functional.conv2d: `input` (N, C, H, W) or (C, H, W), `weight` (O, C/groups, KH, KW), `bias` (O,).

    Raises as `conv1d` does.
    """
    operands = (input, weight, bias)
    return convolved(2, operands, client, stride=stride, padding=padding, dilation=dilation, groups=groups, **more)


def conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    client: Client | None = None,
    **more: Unpack[MoreParameters],
) -> Tensor:
    """torch.nn.functional.conv3d: `input` (N, C, D, H, W) or (C, D, H, W), `weight` (O, C/groups, KD, KH, KW), `bias`
    (O,).

    Raises as `conv1d` does.
    """
    operands = (input, weight, bias)
    return convolved(3, operands, client, stride=stride, padding=padding, dilation=dilation, groups=groups, **more)


def conv_transpose1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    client: Client | None = None,
    **more: Unpack[MoreParameters],
) -> Tensor:
    """torch.nn.functional.conv_transpose1d: `input` (N, C, L) or (C, L), `weight` (C, O/groups, K), `bias` (O,).

    Raises as `conv1d` does.
    """
    return convolved(
        1,
        (input, weight, bias),
        client,
        transposed=True,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        groups=groups,
        dilation=dilation,
        **more,
    )


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    client: Client | None = None,
    **more: Unpack[MoreParameters],
) -> Tensor:
    """torch.nn.functional.conv_transpose2d: `input` (N, C, H, W) or (C, H, W), `weight` (C, O/groups, KH, KW), `bias`
    (O,).

    Raises as `conv1d` does.
    """
    return convolved(
        2,
        (input, weight, bias),
        client,
        transposed=True,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        groups=groups,
        dilation=dilation,
        **more,
    )


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Padding = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    client: Client | None = None,
    **more: Unpack[MoreParameters],
) -> Tensor:
    """torch.nn.functional.conv_transpose3d: `input` (N, C, D, H, W) or (C, D, H, W), `weight` (C, O/groups, KD, KH,
    KW), `bias` (O,).

    Raises as `conv1d` does.
    """
    return convolved(
        3,
        (input, weight, bias),
        client,
        transposed=True,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        groups=groups,
        dilation=dilation,
        **more,
    )
