"""Receptive fields: published figures, the recurrence, intervals walked back layer by layer, and what torch's layers
really let through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import reduce
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convolver.core.errors import InvalidConvolution
from convolver.core.geometry import Geometry
from convolver.core.operation import LARGEST, Tensor
from convolver.core.parse import parse
from convolver.core.pooling import Pooling, parse_pooling
from convolver.core.receptive import MOST_STEPS, ReceptiveField, receptive_fields

Step = Geometry | Pooling
Words = dict[str, Any]


def stack(size: tuple[int, ...], layers: Sequence[Words]) -> list[Step]:
    """One channel throughout. A layer is a convolution's parameters and its kernel, or a pooling's words."""
    steps: list[Step] = []
    for words in layers:
        steps.append(_step(Tensor("float32", (1, 1, *size)), dict(words)))
        size = steps[-1].output_size
    return steps


def _step(input: Tensor, words: Any) -> Step:  # noqa: ANN401 - as callers write them
    ndim = len(input.shape) - 2
    if "kind" in words:
        return parse_pooling(input, words, ndim=ndim)
    kernel = words.pop("kernel")
    weight = Tensor("float32", (1, 1, *((kernel,) * ndim if isinstance(kernel, int) else kernel)))
    return Geometry.of(parse(input, weight, None, words))


def fields(size: int, layers: Sequence[Words]) -> list[ReceptiveField]:
    """Of each layer along one dimension."""
    return [field for (field,) in receptive_fields(stack((size,), layers))]


def conv(kernel: int, stride: int = 1, padding: Any = "same") -> Words:  # noqa: ANN401 - a word or numbers
    return {"kernel": kernel, "stride": stride, "padding": padding}


def pool(kernel: int, stride: int, padding: int = 0) -> Words:
    return {"kind": "max", "kernel": kernel, "stride": stride, "padding": padding}


# Published figures, from github.com/google-research/receptive_field (RECEPTIVE_FIELD_TABLE.md): size, effective stride,
# effective padding, which is how far the first field begins before the input.
ALEXNET = [conv(11, 4, "valid"), pool(3, 2), conv(5), pool(3, 2), conv(3), conv(3), conv(3), pool(3, 2)]
VGG_16 = [layer for convs in (2, 2, 3, 3, 3) for layer in [*[conv(3)] * convs, pool(2, 2)]]
MOBILENET_V1 = [conv(3, 2)]
MOBILENET_V1 += [w for stride in (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1) for w in (conv(3, stride), conv(1))]


def resnet_v1(units: Sequence[int]) -> list[Words]:
    """The longest path of TF-Slim's, whose strides stand in the last unit of the first three blocks. Its pooling is
    padded at the end alone, which moves no beginning.
    """
    strides = [1 + (block < 3 and unit == count - 1) for block, count in enumerate(units) for unit in range(count)]
    bottlenecks = (layer for stride in strides for layer in (conv(1), conv(3, stride, padding=1), conv(1)))
    return [conv(7, 2, padding=3), pool(3, 2), *bottlenecks]


PUBLISHED: dict[str, tuple[int, list[Words], dict[int, tuple[int, int, int]]]] = {
    "alexnet_v2": (224, ALEXNET, {0: (11, 4, 0), 2: (51, 8, 16), 6: (163, 16, 64), 7: (195, 32, 64)}),
    "vgg_16": (224, VGG_16, {2: (6, 2, 2), 5: (16, 4, 6), 9: (44, 8, 18), 13: (100, 16, 42), 17: (212, 32, 90)}),
    "mobilenet_v1": (224, MOBILENET_V1, {0: (3, 2, 0), 8: (27, 8, 6), 24: (251, 32, 94), 26: (315, 32, 126)}),
    "mobilenet_v1 of 321": (321, MOBILENET_V1, {0: (3, 2, 1), 8: (27, 8, 13), 26: (315, 32, 157)}),
    "resnet_v1_50": (224, resnet_v1((3, 4, 6, 3)), {10: (35, 8, 15), 40: (291, 32, 143), 49: (483, 32, 239)}),
    "resnet_v1_101": (224, resnet_v1((3, 4, 23, 3)), {91: (835, 32, 415), 100: (1027, 32, 511)}),
    "resnet_v1_152": (224, resnet_v1((3, 8, 36, 3)), {151: (1507, 32, 751)}),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_networks_have_their_published_fields(name: str) -> None:
    size, layers, known = PUBLISHED[name]
    made = fields(size, layers)
    for index, (seen, jump, padding) in known.items():
        assert tuple(made[index]) == (seen, jump, Fraction(seen, 2) - padding), index


def walked(step: Step, a: int, b: int) -> tuple[int, int]:
    """The inputs that the outputs a..b of one dimension are computed from, by the definitions of the layers."""
    if isinstance(step, Pooling):
        if not step.kernel:
            n, o = step.input_size[0], step.output_size[0]
            return math.floor(Fraction(a * n, o)), math.ceil(Fraction((b + 1) * n, o)) - 1
        reach = step.dilation[0] * (step.kernel[0] - 1) + 1
        return a * step.stride[0] - step.padding[0], b * step.stride[0] - step.padding[0] + reach - 1
    op = step.operation
    s, pb, reach = op.stride[0], op.pad_begin[0], op.dilation[0] * (step.kernel[0] - 1) + 1
    if op.transposed:
        return math.ceil(Fraction(a + pb - reach + 1, s)), math.floor(Fraction(b + pb, s))
    first, last = a * s - pb, b * s - pb + reach - 1
    return math.ceil(Fraction(first, op.input_dilation[0])), math.floor(Fraction(last, op.input_dilation[0]))


def path(steps: Sequence[Step], output: int) -> list[tuple[int, int]]:
    """The intervals before each layer, the last layer's first."""
    intervals = [(output, output)]
    for step in reversed(steps):
        intervals.append(walked(step, *intervals[-1]))
    return intervals[1:]


def seen(steps: Sequence[Step], output: int) -> int:
    """From the first to the last, 0 where some layer leaves nothing."""
    intervals = path(steps, output)
    return 0 if any(a > b for a, b in intervals) else intervals[-1][1] - intervals[-1][0] + 1


def period(steps: Sequence[Step]) -> int:
    """A number of outputs after which all is the same."""
    return math.prod(map(parts, steps))


def parts(step: Step) -> int:
    if isinstance(step, Pooling):
        return 1 if step.kernel else step.output_size[0]
    op = step.operation
    return op.stride[0] if op.transposed else op.input_dilation[0]


@st.composite
def layers(draw: st.DrawFn, dense: bool) -> Words:  # noqa: FBT001 - drawn or not
    """Any layer; or one without gaps, whose kernel elements and windows are neighbours."""
    kind = draw(st.sampled_from(["conv", "conv", "dilated", "transposed", "transposed", "max", "average", "adaptive"]))
    if kind == "adaptive":
        return {"kind": "adaptive_average", "output_size": draw(st.integers(1, 7))}
    kernel, dilation = draw(st.integers(1, 4)), 1 if dense else draw(st.integers(1, 3))
    stride = draw(st.integers(1, kernel if dense and kind != "transposed" else 4))
    words: Words = {"kernel": kernel, "stride": stride}
    if kind in ("max", "average"):
        words |= {"kind": kind, "padding": draw(st.integers(0, kernel // 2))}
        return words | ({"dilation": dilation} if kind == "max" else {})
    words |= {"dilation": dilation, "padding": [(draw(st.integers(-2, 3)), draw(st.integers(-2, 3)))]}
    if kind == "transposed":
        return words | {"transposed": True}
    return words | ({"input_dilation": draw(st.integers(1, 3))} if kind == "dilated" else {})


def built(size: int, drawn: Sequence[Words]) -> list[Step]:
    try:
        return stack((size,), drawn)
    except InvalidConvolution:
        assume(condition=False)
        raise


@settings(max_examples=600)
@given(st.integers(1, 60), st.lists(st.booleans().flatmap(layers), min_size=1, max_size=5))
def test_fields_are_what_intervals_walked_back_make(size: int, drawn: list[Words]) -> None:
    steps = built(size, drawn)
    for count, (field,) in enumerate(receptive_fields(steps), start=1):
        walk, repeats = steps[:count], period(steps[:count])
        assert field.jump * repeats == path(walk, repeats)[-1][0] - path(walk, 0)[-1][0]
        first, last = path(walk, 0)[-1]
        assert field.start == Fraction(first + last + 1, 2)
        largest = max(seen(walk, output) for output in range(repeats))
        assert largest <= field.size
        if repeats * count <= MOST_STEPS and largest:
            assert largest == field.size


def let_through(steps: Sequence[Step], size: int) -> list[list[int]]:
    """The inputs that each output of torch's own layers depends on: the Jacobian's pattern, for kernels of ones, from
    the outputs of one-hot inputs.
    """
    torch = pytest.importorskip("torch")
    return [column.nonzero().flatten().tolist() for column in reduce(_lit, steps, torch.eye(size)[:, None])[:, 0].T]


def _lit(x: Any, step: Step) -> Any:  # noqa: ANN401 - torch.Tensor
    torch = pytest.importorskip("torch")
    call = torch.nn.functional
    if isinstance(step, Pooling):
        words = {"stride": step.stride, "padding": step.padding} if step.kernel else {}
        words |= {"dilation": step.dilation} if step.kind == "max" else {}
        name = step.kind.replace("average", "avg")
        return getattr(call, f"{name}_pool1d")(x, step.kernel or step.output_size, **words).sign()
    op, kernel = step.operation, torch.ones(1, 1, *step.kernel)
    if op.transposed:
        full = call.conv_transpose1d(x, kernel, stride=op.stride, dilation=op.dilation)
        return call.pad(full, (-op.pad_begin[0], -op.pad_end[0])).sign()
    spread = torch.zeros(len(x), 1, (x.shape[2] - 1) * op.input_dilation[0] + 1)
    spread[..., :: op.input_dilation[0]] = x
    padded = call.pad(spread, (op.pad_begin[0], op.pad_end[0]))
    return call.conv1d(padded, kernel, stride=op.stride, dilation=op.dilation).sign()


def inside(steps: Sequence[Step], output: int) -> bool:
    """Whether nothing of what an output is computed from is beyond a border."""
    sizes = reversed([step.input_size[0] for step in steps])
    return all(a >= 0 and b < size for (a, b), size in zip(path(steps, output), sizes, strict=True))


@settings(max_examples=200)
@given(st.integers(40, 90), st.lists(layers(dense=True), min_size=1, max_size=4))
def test_torchs_layers_let_through_just_that(size: int, drawn: list[Words]) -> None:
    steps = built(size, drawn)
    assume(math.prod(steps[-1].output_size) < 600)
    [field], repeats = receptive_fields(steps)[-1], period(steps)
    really = {o: each for o, each in enumerate(let_through(steps, size)) if inside(steps, o)}
    assume(really)
    for output, inputs in really.items():
        assert len(inputs) <= field.size
        if inputs:
            first, last = path(steps, output)[-1]
            assert inputs == list(range(first, last + 1))
        if inputs and output % repeats == 0:
            assert Fraction(inputs[0] + inputs[-1] + 1, 2) == field.start + output * field.jump
    if len({output % repeats for output in really}) == repeats:
        assert field.size == max(map(len, really.values()))


@settings(max_examples=150)
@given(st.integers(40, 90), st.lists(layers(dense=False), min_size=1, max_size=4))
def test_torchs_layers_let_through_no_more_even_with_gaps(size: int, drawn: list[Words]) -> None:
    steps = built(size, drawn)
    assume(math.prod(steps[-1].output_size) < 600)
    [field] = receptive_fields(steps)[-1]
    for inputs in let_through(steps, size):
        assert not inputs or inputs[-1] - inputs[0] < field.size


def test_each_dimension_has_its_own_field() -> None:
    words: list[Words] = [
        {"kernel": (3, 1, 2), "stride": (2, 1, 3), "dilation": (1, 1, 2), "padding": [(1, 0), (0, 0), (2, 2)]},
        {"kernel": (2, 4, 1), "stride": (2, 3, 1), "transposed": True},
        {"kind": "adaptive_average", "output_size": (2, 9, 5)},
    ]
    alone = [[{k: v if isinstance(v, str | bool) else v[d] for k, v in w.items()} for w in words] for d in range(3)]
    for d, each in enumerate(alone):
        each[0]["padding"] = [each[0]["padding"]]
        together = [step[d] for step in receptive_fields(stack((12, 7, 11), words))]
        assert together == fields((12, 7, 11)[d], each)
    assert receptive_fields([]) == []


def test_upsampling_by_two_shows_one_or_two_elements() -> None:
    [field] = fields(8, [{"kernel": 3, "stride": 2, "transposed": True, "padding": 1}])
    assert field == ReceptiveField(2, Fraction(1, 2), Fraction(1, 2))


def test_a_stride_of_an_upsampled_signal_may_show_one_phase_alone() -> None:
    up: Words = {"kernel": 3, "stride": 2, "transposed": True}
    between = [up, {"kernel": 1, "stride": 2, "padding": [(-1, 0)]}]  # the odd outputs, each of one input
    assert [field.size for field in fields(8, between)] == [2, 1]
    assert [field.size for field in fields(8, [up, conv(1, 2, "valid")])] == [2, 2]


def test_nothing_is_seen_between_the_elements_of_a_spread_signal() -> None:
    up: Words = {"kernel": 1, "stride": 2, "transposed": True}
    dead = [conv(3, 2), up, {"kernel": 1, "stride": 2, "padding": -1}, {**up, "stride": LARGEST, "kernel": 3}]
    assert [field.size for field in fields(3, dead)] == [3, 3, 0, 0]


def test_a_global_mean_sees_everything() -> None:
    assert fields(10, [{"kind": "adaptive_average", "output_size": 1}]) == [
        ReceptiveField(10, Fraction(10), Fraction(5))
    ]
    assert fields(1, [{"kind": "adaptive_average", "output_size": 4}])[0].size == 1


HOSTILE: list[Words] = [
    {"kernel": 3, "stride": LARGEST, "transposed": True, "output_size": LARGEST},
    {"kernel": 2, "stride": LARGEST - 2, "padding": [(0, 5)]},
    {"kind": "adaptive_average", "output_size": LARGEST - 4},
    {"kernel": 5, "stride": LARGEST, "dilation": 1009, "padding": 2000},
]


def test_hostile_strides_take_no_time_and_are_bounded_from_above() -> None:
    steps = stack((1,), HOSTILE * 50)
    for count, (field,) in enumerate(receptive_fields(steps), start=1):
        if count <= 12:
            assert max(seen(steps[:count], output) for output in (*range(50), 10**9, 10**18 + 7)) <= field.size


def test_what_no_double_holds_is_infinite() -> None:
    deep = fields(3, [conv(3, LARGEST, 1)] * 40)[-1]
    assert deep.jump == LARGEST**40
    assert deep.doubles == (math.inf, math.inf, 0.5)
    assert fields(8, [conv(3, 2, 1)])[0].doubles == (3.0, 2.0, 0.5)
    assert fields(3, [conv(1, LARGEST, 1)] * 40)[-1].doubles == (1.0, math.inf, -math.inf)
