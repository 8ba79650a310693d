"""Bugs that somebody could make in the core: what would be written instead, and a test that must not let it pass."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """`old`, once in `file` (under convolver/core), becomes `new`; then `test` (under tests/core) must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
    why: str

    @property
    def needs_torch(self) -> bool:
        return self.file.startswith("backends/torch")


ACTIVATED = """
    if plan.operation.activation != "none":
        sums = steps.activated(plan.operation, sums)"""
BIASED = """
    if prepared.bias is not None:
        sums += prepared.bias.reshape(-1, *(1,) * plan.geometry.ndim)"""

PLANNING = [
    Mutant(
        "same with the odd element at the beginning",
        "padding.py",
        "return total // 2, total - total // 2",
        "return total - total // 2, total // 2",
        "test_geometry.py::test_same_gives_one_output_for_each_started_stride",
        "ONNX's SAME_LOWER has it there",
    ),
    Mutant(
        "transposed same and same_lower swapped",
        "padding.py",
        'split_evenly(total)\n    return (small, large) if word == "same"',
        'split_evenly(total)\n    return (large, small) if word == "same"',
        "test_geometry.py::test_transposed_words_give_size_times_stride",
        "a transposed padding crops, which looks like the other way round",
    ),
    Mutant(
        "output size rounded up",
        "geometry.py",
        "return (span + padding - kernel_extent) // stride + 1",
        "return -(-(span + padding - kernel_extent) // stride) + 1",
        "test_geometry.py::test_the_shape_is_the_one_that_the_loops_make",
        "pooling has a ceil_mode, convolutions have none",
    ),
    Mutant(
        "dilation left out of the extent",
        "geometry.py",
        "return dilation * (kernel - 1) + 1",
        "return kernel",
        "test_geometry.py::test_an_output_of_one_is_allowed_and_none_is_not",
        "most kernels are not dilated",
    ),
    Mutant(
        "gap after the last element of a dilated input",
        "geometry.py",
        "return (size - 1) * input_dilation + 1 if size else 0",
        "return size * input_dilation",
        "test_padding.py::test_the_input_is_dilated_then_cropped_then_padded",
        "np.kron with (1, 0, 0) leaves it there",
    ),
    Mutant(
        "output_padding forgotten",
        "geometry.py",
        "kernel_extent + output_padding",
        "kernel_extent",
        "test_geometry.py::test_output_size_is_reached_by_output_padding",
        "it is 0 almost always",
    ),
    Mutant(
        "negative padding taken for none",
        "geometry.py",
        "span + begin + end for",
        "span + max(begin, 0) + max(end, 0) for",
        "test_padding.py::test_begin_and_end_are_not_mixed_up",
        "np.pad takes no negative width",
    ),
    Mutant(
        "bfloat16 counted as narrower than float16",
        "dtypes.py",
        "wide.bits >= narrow.bits and wide.exponent >= narrow.exponent",
        "wide.bits >= narrow.bits",
        "test_parse.py::test_the_output_may_have_each_type_that_holds_every_value_of_the_inputs",
        "its significand is, its range is not",
    ),
    Mutant(
        "a limit refuses its own value",
        "plan.py",
        "if value > limit",
        "if value >= limit",
        "test_plan.py::test_a_limit_is_refused_with_figure_limit_and_setting",
        "one of the two is as quickly written as the other",
    ),
    Mutant(
        "an FFT where nothing is left",
        "tiling.py",
        "min(end, 0) <= 0",
        "min(end, 0) < 0",
        "test_fft.py::test_where_nothing_of_the_input_is_left_there_is_no_fft",
        "a crop may end exactly where the input does",
    ),
    Mutant(
        "begin and end swapped on their way",
        "codec.py",
        "list(zip(begin, end, strict=True))",
        "list(zip(end, begin, strict=True))",
        "test_codec.py::test_an_operation_that_travels_is_the_one_that_is_parsed_here",
        "two lists of one type and length",
    ),
    Mutant(
        "products sent as the work",
        "plan_codec.py",
        "        work=plan.work + backward,\n",
        "        work=plan.macs + backward,\n",
        "test_codec.py::test_the_largest_plan_that_the_contract_can_say_travels",
        "they are the same number for direct sums",
    ),
]

ARITHMETIC = [
    Mutant(
        "reflect repeats the edge",
        "backends/arrays.py",
        "2 * length - 2 - j",
        "2 * length - 1 - j",
        "test_padding.py::test_positions_around_three_elements_are_these",
        "SciPy's ndimage calls that reflect",
    ),
    Mutant(
        "circular off by one",
        "backends/arrays.py",
        "return m % length",
        "return (m + 1) % length",
        "test_padding.py::test_positions_around_three_elements_are_these",
        "the element before the first is the last",
    ),
    Mutant(
        "kernel turned in one dimension only",
        "backends/arrays.py",
        "np.flip(array, tuple(range(2, array.ndim)))",
        "np.flip(array, -1)",
        "test_backends.py::test_weights_prepared_once_serve_many_inputs[reference]",
        "for signals it is the same",
    ),
    Mutant(
        "channels_last weight with inputs and outputs swapped",
        "backends/arrays.py",
        "array.transpose(-1, -2,",
        "array.transpose(-2, -1,",
        "test_backends.py::test_results_are_within_the_tolerance_of_the_oracles[float32-reference]",
        "where there are as many of both it fits",
    ),
    Mutant(
        "batch groups dealt out in turn",
        "backends/sums.py",
        "grouped = split.swapaxes(0, 1)",
        "grouped = split",
        "test_backends.py::test_batch_groups_are_consecutive_parts_of_the_batch",
        "JAX cuts the batch into consecutive parts",
    ),
    Mutant(
        "parts of a batch and its items swapped",
        "backends/sums.py",
        "target.swapaxes(0, 1)",
        "out.reshape(columns.shape[:3] + target.shape[3:])",
        "test_backends.py::test_batch_groups_are_consecutive_parts_of_the_batch",
        "NumPy's reshape takes any order, and one item each hides it",
    ),
    Mutant(
        "stride counted in the output's size alone",
        "backends/sums.py",
        "step * s for step, s in zip(steps, op.stride, strict=True)",
        "step for step in steps",
        "test_backends.py::test_results_are_within_the_tolerance_of_the_oracles[float32-reference]",
        "the shape is right",
    ),
    Mutant(
        "outputs of a depthwise multiplier ordered by multiple",
        "backends/sums.py",
        "w.reshape(groups, len(w) // groups, geometry.channels_per_group, how.offsets, -1)",
        "w.reshape(len(w) // groups, groups, geometry.channels_per_group, how.offsets, -1).swapaxes(0, 1)",
        "test_backends.py::test_results_are_within_the_tolerance_of_the_oracles[float32-reference]",
        "groups come first in torch and TensorFlow",
    ),
    Mutant(
        "transposed output cropped at the wrong end",
        "backends/sums.py",
        "op.dilation[d] - op.pad_begin[d]",
        "op.dilation[d] - op.pad_end[d]",
        "test_backends.py::test_transposed_positions_that_nothing_reaches_hold_the_bias",
        "symmetric padding hides it",
    ),
    Mutant(
        "tiles placed by their outputs, not by what they read",
        "backends/overlap.py",
        "yield slice(first * stride, first * stride + tiling.lengths[d])",
        "yield slice(first, first + tiling.lengths[d])",
        "test_fft.py::test_many_tiles_and_blocks_make_one_output",
        "it is right for one tile, and for a stride of 1",
    ),
    Mutant(
        "sums of a spoilt transform believed",
        "backends/overlap.py",
        "if not library.finite(sums).all()",
        "if not library.finite(sums).any()",
        "test_fft.py::test_what_a_transform_would_spread_over_the_whole_output_is_not_believed",
        "all and any agree on everything but a mixture",
    ),
    Mutant(
        "float16 summed in float16",
        "backends/reference.py",
        "    wide = plan.operation.accumulator.numpy\n    if plan",
        "    wide = dtypes.TABLE[plan.operation.output_dtype].numpy\n    if plan",
        "test_backends.py::test_narrow_floats_are_rounded_after_the_bias_alone[reference]",
        "NumPy's matrix products sum in float32 and hide it",
    ),
    Mutant(
        "bias after the activation",
        "backends/stacks.py",
        "steps.sums(plan, prepared, x)" + ACTIVATED,
        "steps.sums(plan, prepared._replace(bias=None), x)" + ACTIVATED + BIASED,
        "test_activations.py::test_the_bias_comes_first[reference]",
        "a bias that is a layer of its own comes there",
    ),
    Mutant(
        "signed sums checked against 64 bits",
        "backends/integers.py",
        "if bound >= 2**wide.bits and",
        "if bound >= 2**64 and",
        "test_integers.py::test_sums_beyond_64_bits_are_refused_with_their_index_and_about_their_value",
        "one of the 64 is the sign",
    ),
    Mutant(
        "the float64 shadow taken for exact",
        "backends/integers.py",
        "*= (geometry.sum_length + 4) * 2.0**-53",
        "*= 0",
        "test_integers.py::test_a_sum_just_beyond_64_bits_is_refused_though_its_shadow_is_just_below",
        "a wrapped sum passes where the shadow is rounded down",
    ),
    Mutant(
        "integers rounded twice",
        "backends/integers.py",
        "np.where((near != values) & even, towards, near)",
        "near",
        "test_integers.py::test_a_float_output_is_rounded_once",
        "ml_dtypes goes by way of float32 in silence",
    ),
    Mutant(
        "complex weight conjugated",
        "backends/torch.py",
        "self._sent(plan, np.ascontiguousarray(canonical))",
        "self._sent(plan, np.ascontiguousarray(canonical).conj())",
        "test_backends.py::test_results_are_within_the_tolerance_of_the_oracles[complex64-torch]",
        "np.correlate and scipy.signal.correlate do so",
    ),
    Mutant(
        "dimensions padded in the wrong order",
        "backends/torch_sums.py",
        "for d in reversed(range(geometry.ndim)) for side in",
        "for d in range(geometry.ndim) for side in",
        "test_backends.py::test_results_are_within_the_tolerance_of_the_oracles[float32-torch]",
        "F.pad begins with the last",
    ),
    Mutant(
        "softplus that is linear above 20",
        "backends/torch.py",
        "torch.logaddexp(x, torch.zeros_like(x))",
        "F.softplus(x)",
        "test_activations.py::test_back_ends_apply_them_within_the_tolerance[softplus-float64-torch]",
        "torch's own softplus is",
    ),
]

MUTANTS = PLANNING + ARITHMETIC
