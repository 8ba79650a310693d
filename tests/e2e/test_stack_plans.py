"""What Plan says of a stack: the published numbers of known networks, and the limits of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest

from convolver.client import Client, Conv, Pool
from convolver.core.errors import LimitExceeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import RunningServer


class Shape(NamedTuple):
    """A square layer of a plan: channels of a convolution, 0 for max pooling."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0


LENET = (Shape(6, 5), Shape(0, 2, 2), Shape(16, 5), Shape(0, 2, 2), Shape(120, 5))
ALEXNET = (
    *(Shape(64, 11, 4, 2), Shape(0, 3, 2), Shape(192, 5, 1, 2), Shape(0, 3, 2)),
    *(Shape(384, 3, 1, 1), Shape(256, 3, 1, 1), Shape(256, 3, 1, 1), Shape(0, 3, 2)),
)
VGG16 = tuple(
    each
    for channels, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    for each in (*[Shape(channels, 3, 1, 1)] * count, Shape(0, 2, 2))
)
PUBLISHED = {
    # name: layers, input, receptive field, jump, parameters (of the convolutions in torchvision's models), last output
    "LeNet": (LENET, (1, 1, 32, 32), 32, 4, 156 + 2416 + 48_120, 1),
    "AlexNet": (ALEXNET, (1, 3, 224, 224), 195, 32, 2_469_696, 6),
    "VGG-16": (VGG16, (1, 3, 224, 224), 212, 32, 14_714_688, 7),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_plan_has_the_published_numbers(client: Client, name: str) -> None:
    shapes, input_shape, size, jump, parameters, output = PUBLISHED[name]
    layers, channels = list[Conv | Pool](), input_shape[1]
    for each in shapes:
        if each.channels:
            weight = (each.channels, channels, each.kernel, each.kernel)
            layers.append(Conv(weight, bias=True, stride=each.stride, padding=each.padding))
            channels = each.channels
        else:
            layers.append(Pool("max", each.kernel, stride=each.stride, padding=each.padding))
    plan = client.stack(layers).plan(input_shape)
    [field, _] = plan.receptive_fields[-1]
    assert (field.doubles[0], field.doubles[1], plan.parameter_count) == (size, jump, parameters)
    assert plan.output_shape == (1, channels, output, output)
    assert_follows(plan, shapes, input_shape)


def assert_follows(plan: Any, shapes: Sequence[Shape], input_shape: Sequence[int]) -> None:  # noqa: ANN401 - a StackPlan
    """Each layer's size, products and receptive field, by the recurrences of Araujo et al. 2019."""
    channels, length = input_shape[1], input_shape[2]
    r, j, start, products = 1.0, 1.0, 0.5, 0
    for layer, fields, each in zip(plan.layers, plan.receptive_fields, shapes, strict=True):
        k, s, p = each.kernel, each.stride, each.padding
        length = (length + 2 * p - k) // s + 1
        macs = each.channels * channels * k * k * length * length
        channels, products = each.channels or channels, products + macs
        r, start, j = r + (k - 1) * j, start + ((k - 1) / 2 - p) * j, j * s
        assert (layer.output.shape, layer.macs) == ((1, channels, length, length), macs)
        assert [field.doubles for field in fields] == [(r, j, start)] * 2
    assert plan.macs == products


LIMITS = {"--max-work": 8_000_000, "--max-request-bytes": 2_000_000, "--max-output-elements": 100_000}


@pytest.mark.parametrize("setting", LIMITS)
def test_limits_are_those_of_the_whole_stack(serve: Callable[..., RunningServer], setting: str) -> None:
    running = serve("--backend=reference", f"{setting}={LIMITS[setting]}")
    wide, narrow = np.ones((8, 8, 3, 3), np.float32), np.ones((1, 8, 1, 1), np.float32)
    x = np.ones((1, 8, 100, 100), np.float32)
    layers = {
        "--max-work": [Conv(wide, padding=1), Conv(wide, padding=1)],
        "--max-request-bytes": [*[Conv(wide, padding=1)] * 5, Conv(narrow)],
        "--max-output-elements": [Conv(narrow), Conv(np.ones((12, 1, 1, 1), np.float32))],
    }[setting]
    with Client(running.address) as client:
        errors = []
        stack = client.stack(layers)
        for attempt in (lambda: stack.plan(x.shape), lambda: stack(x)):
            with pytest.raises(LimitExceeded) as caught:
                attempt()
            errors.append(vars(caught.value))
        assert errors[0] == errors[1]
        assert (caught.value.setting, caught.value.limit) == (setting, LIMITS[setting])
        assert caught.value.value > caught.value.limit
        assert client.stack([Conv(narrow)])(x).shape == (1, 1, 100, 100)
    assert running.stop() == 0
