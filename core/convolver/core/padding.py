"""The words for padding, resolved to numbers, and the positions that each padding mode reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, get_args

from convolver.core.errors import InvalidConvolution, shown
from convolver.core.geometry import dilated, extent, transposed_size
from convolver.core.operation import Operation
from convolver.core.parameters import PaddingWord
from convolver.core.values import explicit_padding, per_dimension

PADDING_WORDS: tuple[str, ...] = get_args(PaddingWord)

Pair = tuple[int, int]


def padded(op: Operation, given: Mapping[str, Any]) -> Operation:
    """`op` with its padding and output_padding in numbers, from `padding`, `output_padding` and `output_size`.

    Raises InvalidConvolution for an unknown word and for words, sizes and output paddings that do not go together.
    """
    wanted = given.get("padding", 0)
    if isinstance(wanted, str) and wanted not in PADDING_WORDS:
        raise InvalidConvolution(
            f"padding is {shown(wanted)}, which is neither numbers nor one of {', '.join(PADDING_WORDS)}", "padding"
        )
    if op.transposed:
        return _padded_transposed(op, wanted, given)
    if not isinstance(wanted, str):
        begin, end = explicit_padding(wanted, op.ndim)
        return replace(op, pad_begin=begin, pad_end=end)
    spans = map(dilated, op.canonical_input[2:], op.input_dilation)
    return _with_pairs(op, (forward_word(wanted, *sizes) for sizes in zip(spans, op.stride, _extents(op), strict=True)))


def split_evenly(total: int) -> Pair:
    """Half at each end, an odd element at the end."""
    return total // 2, total - total // 2


def forward_word(word: str, span: int, stride: int, reach: int) -> Pair:
    """(begin, end) for an input that spans L = `span` and a kernel that spans e = `reach`.

    `same` gives ceil(L/stride) outputs (TensorFlow's SAME), `full` e-1 at both ends (SciPy's full), `causal` e-1 at the
    beginning.
    """
    if word == "valid":
        return 0, 0
    if word == "full":
        return reach - 1, reach - 1
    if word == "causal":
        return reach - 1, 0
    outputs = -(-span // stride)
    small, large = split_evenly(max(0, (outputs - 1) * stride + reach - span))
    return (small, large) if word == "same" else (large, small)


def transposed_word(word: str, stride: int, reach: int) -> Pair:
    """(begin, end) of a transposed convolution; `same` and `causal` give size*stride outputs, negative padding where
    stride > e.

    Raises InvalidConvolution for `full`.
    """
    if word == "valid":
        return 0, 0
    if word == "full":
        raise InvalidConvolution(
            "padding 'full' has no meaning with transposed=True: 'valid' keeps the whole output", "padding"
        )
    total = reach - stride
    if word == "causal" or total < 0:
        return 0, total
    small, large = split_evenly(total)
    return (small, large) if word == "same" else (large, small)


def requested_size(target: int, size: int, stride: int, reach: int) -> int:
    """The total padding with which a transposed `same` of `size` inputs gives `target` outputs: (size-1)*stride + e -
    target; a negative one stands for so much output_padding.

    Raises InvalidConvolution unless ceil(target/stride) = size.
    """
    if -(-target // stride) != size:
        taken = f"{(size - 1) * stride + 1} to {size * stride}"
        raise InvalidConvolution(
            f"output_size {target} is not one that stride {stride} makes of {size}; 'same' takes {taken}", "output_size"
        )
    return (size - 1) * stride + reach - target


def _extents(op: Operation) -> tuple[int, ...]:
    return tuple(map(extent, op.canonical_weight[2:], op.dilation))


def _with_pairs(op: Operation, pairs: Iterable[Pair]) -> Operation:
    begin, end = zip(*pairs, strict=True)
    return replace(op, pad_begin=begin, pad_end=end)


def _padded_transposed(op: Operation, wanted: Any, given: Mapping[str, Any]) -> Operation:  # noqa: ANN401 - Padding, as the caller wrote it
    if 0 in op.canonical_input[2:]:
        raise InvalidConvolution(
            f"input {op.input_shape} has an empty dimension, of which transposed=True makes nothing", "input.shape"
        )
    extra = per_dimension(given.get("output_padding", 0), op.ndim, "output_padding", low=0)
    target = given.get("output_size")
    sizes = None if target is None else per_dimension(target, op.ndim, "output_size", low=1)
    if any(extra) and sizes is not None:
        raise InvalidConvolution(
            f"output_padding {extra} and output_size {sizes} are both given; one is enough", "output_padding"
        )
    if isinstance(wanted, str) and wanted != "valid":
        return _by_word(op, wanted, extra, sizes)
    begin, end = ((0,) * op.ndim,) * 2 if isinstance(wanted, str) else explicit_padding(wanted, op.ndim)
    numbers = replace(op, pad_begin=begin, pad_end=end)
    extra = extra if sizes is None else _output_padding_for(numbers, sizes)
    for d, (value, stride, dilation) in enumerate(zip(extra, op.stride, op.dilation, strict=True)):
        if value >= max(stride, dilation):
            raise InvalidConvolution(
                f"output_padding[{d}] is {value}; it must be below max(stride, dilation) = max({stride}, {dilation})",
                f"output_padding[{d}]",
            )
    return replace(numbers, output_padding=extra)


def _by_word(op: Operation, word: str, extra: tuple[int, ...], sizes: tuple[int, ...] | None) -> Operation:
    pairs = [transposed_word(word, *pair) for pair in zip(op.stride, _extents(op), strict=True)]
    if any(extra) or (sizes is not None and word == "causal"):
        field, value = ("output_padding", extra) if any(extra) else ("output_size", sizes)
        raise InvalidConvolution(f"{field} is {value}, which does not go with padding {word!r}", field)
    if sizes is None:
        return _with_pairs(op, pairs)
    totals = tuple(map(requested_size, sizes, op.canonical_input[2:], op.stride, _extents(op)))
    extended = replace(op, output_padding=tuple(max(0, -total) for total in totals))
    pairs = [split_evenly(max(0, total)) for total in totals]
    return _with_pairs(extended, pairs if word == "same" else [(large, small) for small, large in pairs])


def _output_padding_for(op: Operation, sizes: tuple[int, ...]) -> tuple[int, ...]:
    """The output_padding that gives the sizes asked for."""
    extra = []
    for d, target in enumerate(sizes):
        least = transposed_size(
            op.canonical_input[2 + d], op.stride[d], _extents(op)[d], op.pad_begin[d] + op.pad_end[d], 0
        )
        most = least + max(op.stride[d], op.dilation[d]) - 1
        if not least <= target <= most:
            raise InvalidConvolution(
                f"output_size[{d}] is {target}; these parameters give {least} to {most}", f"output_size[{d}]"
            )
        extra.append(target - least)
    return tuple(extra)
