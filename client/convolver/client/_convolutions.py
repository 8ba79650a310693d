"""conv1d ... conv_transpose3d with the arguments of torch.nn.functional, once for both colours of the client."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from convolver.client._interchange import AnyArray
    from convolver.core.parameters import MoreParameters, Padding, Parameters, Sizes

Output = TypeVar("Output")
"""What a call returns: an array, or what gives one when it is awaited."""


class Convolutions(ABC, Generic[Output]):
    """The methods that differ only in rank."""

    @abstractmethod
    def _of_rank(
        self,
        ndim: int,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray,
        out: AnyArray,
        **parameters: Unpack[Parameters],
    ) -> Output:
        """What `convolve` returns. A weight of another rank raises InvalidConvolution where the output would come."""

    def conv1d(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        *,
        out: AnyArray = None,
        **more: Unpack[MoreParameters],
    ) -> Output:
        """torch.nn.functional.conv1d: `input` (N, C, L), `weight` (O, C/groups, K), `bias` (O,); and the parameters
        that torch lacks.
        """
        return self._of_rank(
            1,
            input,
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            out=out,
            **more,
        )

    def conv2d(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        *,
        out: AnyArray = None,
        **more: Unpack[MoreParameters],
    ) -> Output:
        """torch.nn.functional.conv2d: `input` (N, C, H, W), `weight` (O, C/groups, KH, KW), `bias` (O,); and the
        parameters that torch lacks.
        """
        return self._of_rank(
            2,
            input,
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            out=out,
            **more,
        )

    def conv3d(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        *,
        out: AnyArray = None,
        **more: Unpack[MoreParameters],
    ) -> Output:
        """torch.nn.functional.conv3d: `input` (N, C, D, H, W), `weight` (O, C/groups, KD, KH, KW), `bias` (O,); and the
        parameters that torch lacks.
        """
        return self._of_rank(
            3,
            input,
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            out=out,
            **more,
        )

    def conv_transpose1d(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        stride: Sizes = 1,
        padding: Padding = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
        *,
        out: AnyArray = None,
        **more: Unpack[MoreParameters],
    ) -> Output:
        """torch.nn.functional.conv_transpose1d: `input` (N, C, L), `weight` (C, O/groups, K), `bias` (O,)."""
        return self._of_rank(
            1,
            input,
            weight,
            bias,
            transposed=True,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
            out=out,
            **more,
        )

    def conv_transpose2d(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        stride: Sizes = 1,
        padding: Padding = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
        *,
        out: AnyArray = None,
        **more: Unpack[MoreParameters],
    ) -> Output:
        """torch.nn.functional.conv_transpose2d: `input` (N, C, H, W), `weight` (C, O/groups, KH, KW), `bias` (O,)."""
        return self._of_rank(
            2,
            input,
            weight,
            bias,
            transposed=True,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
            out=out,
            **more,
        )

    def conv_transpose3d(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        stride: Sizes = 1,
        padding: Padding = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        dilation: Sizes = 1,
        *,
        out: AnyArray = None,
        **more: Unpack[MoreParameters],
    ) -> Output:
        """torch.nn.functional.conv_transpose3d: `input` (N, C, D, H, W), `weight` (C, O/groups, KD, KH, KW), `bias`
        (O,).
        """
        return self._of_rank(
            3,
            input,
            weight,
            bias,
            transposed=True,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
            out=out,
            **more,
        )
