"""What an output sees of a stack's input: size, jump and start of its receptive field along each dimension (Araujo,
Norris, Sim: "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019).

Each layer takes the outputs a..b back to the inputs ceil((a m + low)/q)..floor((b m + high)/q); e is the extent of the
dilated kernel, s the stride, p the padding before the first element:

    forward, input dilated by f    m = s, low = -p, high = e-1-p, q = f
    transposed                     m = 1, low = p-e+1, high = p, q = s
    pooling                        m = s, low = -p, high = e-1-p, q = 1
    adaptive, n elements to o      m = n, low = 1-o, high = n-1, q = o

The size is the largest number of inputs, from the first to the last, that one output is taken back to, whatever its
index: as if every layer went on beyond its borders, padding counted, and what a dilated kernel steps over counted. With
q = 1 everywhere this is the recurrence of the paper: r += (e-1) j, start += ((e-1)/2 - p) j, j *= s, from r = j = 1 and
start = 1/2. With q > 1 outputs differ by their phase, and some may see nothing. There the size is a bound where a later
layer steps over elements (kernel dilation, or a stride above the kernel), and where there are too many phases to walk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from convolver.core.geometry import Geometry
from convolver.core.pooling import Pooling

MOST_STEPS = 1024
"""Phases times merged layers that are walked for one size."""


class ReceptiveField(NamedTuple):
    """Along one dimension: `size` in input elements, 0 where an output sees none; `jump`, the input elements between
    the centres of neighbouring outputs' fields, the mean where these differ; `start`, the centre of the first output's
    field, where input element i covers i to i+1.
    """

    size: int
    jump: Fraction
    start: Fraction

    @property
    def doubles(self) -> tuple[float, float, float]:
        """As the contract has them; infinite what no double holds."""
        return _double(self.size), _double(self.jump), _double(self.start)


class _Walk(NamedTuple):
    """Back from the outputs a..b to the inputs ceil((a*step + low)/parts)..floor((b*step + high)/parts)."""

    step: int
    low: int
    high: int
    parts: int

    @classmethod
    def of(cls, step: int, low: int, high: int, parts: int) -> _Walk:
        """In lowest terms: ceil((g x + low)/(g q)) = ceil((x + ceil(low/g))/q) for integers."""
        common = math.gcd(step, parts)
        return cls(step // common, -(-low // common), high // common, parts // common)

    def back(self, a: int, b: int) -> tuple[int, int]:
        """The inputs, first > last where there are none."""
        return -(-(a * self.step + self.low) // self.parts), (b * self.step + self.high) // self.parts

    def after(self, first: _Walk) -> _Walk:
        """Both as one, where self.parts or first.step is 1: ceil((ceil(x/q) + low)/p) = ceil((x + low q)/(p q))."""
        low = self.low * first.step + first.low * self.parts
        high = self.high * first.step + first.high * self.parts
        return _Walk.of(self.step * first.step, low, high, self.parts * first.parts)

    def most(self, outputs: int) -> int:
        """Inputs that so many neighbouring outputs see at most."""
        return -(-((outputs - 1) * self.step + self.high - self.low + 1) // self.parts) if outputs else 0


class _Path:
    """The layers so far along one dimension, neighbours merged where that is exact."""

    def __init__(self) -> None:
        self._walks: list[_Walk] = []
        self._jump = Fraction(1)

    def extend(self, then: _Walk) -> None:
        """A layer that may see nothing of the one before it stays apart from it."""
        self._jump *= Fraction(then.step, then.parts)
        last = self._walks[-1] if self._walks else None
        if last and (then.parts == 1 or last.step == 1) and then.high - then.low + 1 >= then.parts:
            self._walks[-1] = then.after(last)
        else:
            self._walks.append(then)

    def field(self) -> ReceptiveField:
        """That of the last layer."""
        first = last = 0
        for walk in reversed(self._walks):
            first, last = walk.back(first, last)
        return ReceptiveField(self._size(), self._jump, Fraction(first + last + 1, 2))

    def _size(self) -> int:
        """The largest over the phases. Of a single walk in lowest terms it is known: some output has each remainder."""
        phases = self._phases() if len(self._walks) > 1 else 0
        if phases:
            return max(map(self._seen, range(phases)))
        outputs = 1
        for walk in reversed(self._walks):
            outputs = walk.most(outputs)
        return outputs

    def _phases(self) -> int:
        """Outputs after which all is the same, moved by whole elements; 0 where there are too many to walk."""
        phases, jump = 1, Fraction(1)
        for walk in reversed(self._walks):
            jump *= Fraction(walk.step, walk.parts)
            phases = math.lcm(phases, jump.denominator)
            if phases * len(self._walks) > MOST_STEPS:
                return 0
        return phases

    def _seen(self, output: int) -> int:
        first = last = output
        for walk in reversed(self._walks):
            first, last = walk.back(first, last)
            if first > last:
                return 0
        return last - first + 1


def receptive_fields(steps: Sequence[Geometry | Pooling]) -> list[tuple[ReceptiveField, ...]]:
    """Of each step's output with respect to the first step's input, one for each spatial dimension.

    The cost of each step is a constant while they are plain, and else at most MOST_STEPS or the number of steps so far.
    """
    paths = [_Path() for _ in range(steps[0].ndim)] if steps else []
    fields = []
    for step in steps:
        for d, path in enumerate(paths):
            path.extend(_walk(step, d))
        fields.append(tuple(path.field() for path in paths))
    return fields


def _walk(step: Geometry | Pooling, d: int) -> _Walk:
    if isinstance(step, Pooling):
        if not step.kernel:
            size, outputs = step.input_size[d], step.output_size[d]
            return _Walk.of(size, 1 - outputs, size - 1, outputs)
        return _Walk(step.stride[d], -step.padding[d], step.extents[d] - 1 - step.padding[d], 1)
    op, reach = step.operation, step.extents[d] - 1
    if op.transposed:
        return _Walk.of(1, op.pad_begin[d] - reach, op.pad_begin[d], op.stride[d])
    return _Walk.of(op.stride[d], -op.pad_begin[d], reach - op.pad_begin[d], op.input_dilation[d])


def _double(value: int | Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
