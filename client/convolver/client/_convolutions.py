"""conv1d ... conv_transpose3d with the arguments of torch.nn.functional, once for both colours of the client."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convolver.client._client_shared import check_rank

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from convolver.client._interchange import AnyArray
    from convolver.core.parameters import MoreParameters, Padding, Parameters, Sizes


class Convolutions:
    """The methods that differ only in rank. What they return is what `convolve` returns, an array or something to
    await.
    """

    def convolve(
        self, input: AnyArray, weight: AnyArray, bias: AnyArray = None, **parameters: Unpack[Parameters]
    ) -> AnyArray:
        """The convolution, whose spatial rank follows from the weight."""
        raise NotImplementedError

    def conv1d(
        self,
        input: AnyArray,
        weight: AnyArray,
        bias: AnyArray = None,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        **more: Unpack[MoreParameters],
    ) -> AnyArray:
        """torch.nn.functional.conv1d: `input` (N, C, L), `weight` (O, C/groups, K), `bias` (O,); and the parameters
        that torch lacks.
        """
        check_rank(weight, 1, "conv1d")
        return self.convolve(
            input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **more
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
        **more: Unpack[MoreParameters],
    ) -> AnyArray:
        """torch.nn.functional.conv2d: `input` (N, C, H, W), `weight` (O, C/groups, KH, KW), `bias` (O,); and the
        parameters that torch lacks.
        """
        check_rank(weight, 2, "conv2d")
        return self.convolve(
            input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **more
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
        **more: Unpack[MoreParameters],
    ) -> AnyArray:
        """torch.nn.functional.conv3d: `input` (N, C, D, H, W), `weight` (O, C/groups, KD, KH, KW), `bias` (O,); and the
        parameters that torch lacks.
        """
        check_rank(weight, 3, "conv3d")
        return self.convolve(
            input, weight, bias, stride=stride, padding=padding, dilation=dilation, groups=groups, **more
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
        **more: Unpack[MoreParameters],
    ) -> AnyArray:
        """torch.nn.functional.conv_transpose1d: `input` (N, C, L), `weight` (C, O/groups, K), `bias` (O,)."""
        check_rank(weight, 1, "conv_transpose1d")
        return self.convolve(
            input,
            weight,
            bias,
            transposed=True,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
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
        **more: Unpack[MoreParameters],
    ) -> AnyArray:
        """torch.nn.functional.conv_transpose2d: `input` (N, C, H, W), `weight` (C, O/groups, KH, KW), `bias` (O,)."""
        check_rank(weight, 2, "conv_transpose2d")
        return self.convolve(
            input,
            weight,
            bias,
            transposed=True,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
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
        **more: Unpack[MoreParameters],
    ) -> AnyArray:
        """torch.nn.functional.conv_transpose3d: `input` (N, C, D, H, W), `weight` (C, O/groups, KD, KH, KW), `bias`
        (O,).
        """
        check_rank(weight, 3, "conv_transpose3d")
        return self.convolve(
            input,
            weight,
            bias,
            transposed=True,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
            groups=groups,
            dilation=dilation,
            **more,
        )
