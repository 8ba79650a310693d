"""Networks that are no stack: which module is named, and why."""

from __future__ import annotations

from typing import Any

import pytest
from tests.client.torch_comparison import torch

from convolver.client.torch import describe
from convolver.core.errors import InvalidConvolution

nn = torch.nn


class Own(nn.Sequential):  # type: ignore[misc,name-defined]  # torch is Any here
    def forward(self, x: Any) -> Any:  # noqa: ANN401 - a tensor
        return super().forward(x) + x


class Wider(nn.Conv2d):  # type: ignore[misc,name-defined]  # likewise
    pass


def hooked() -> Any:  # noqa: ANN401 - a module
    module = nn.Conv2d(1, 2, 3)
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("modules", "path", "complaint"),
    [
        ([nn.ReLU()], "0", "0 (ReLU): it must directly follow a convolution"),
        (
            [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Tanh()],
            "2",
            "2 (Tanh): it must directly follow a convolution, which takes one",
        ),
        ([nn.Conv2d(1, 2, 3), nn.Sequential(nn.MaxPool2d(2), nn.ReLU())], "1.1", "1.1 (ReLU): it must directly"),
        ([nn.Conv2d(1, 2, 3), nn.LeakyReLU(0.2)], "1", "it has negative_slope=0.2; there is negative_slope=0.01 alone"),
        ([nn.Conv2d(1, 2, 3), nn.ELU(0.5)], "1", "it has alpha=0.5; there is alpha=1.0 alone"),
        (
            [nn.Conv2d(1, 2, 3), nn.Softplus(threshold=3.0)],
            "1",
            "it has beta=1.0, threshold=3.0; there is beta=1.0, thr",
        ),
        ([nn.Conv2d(1, 2, 3), nn.Softmax(1)], "1", "1 (Softmax): no layer of a stack does what it does"),
        ([nn.MaxPool2d(2, ceil_mode=True)], "0", "0 (MaxPool2d): ceil_mode is True; it must be False"),
        ([nn.MaxPool2d(2, return_indices=True)], "0", "return_indices is True; it must be False"),
        ([nn.AvgPool2d(2, count_include_pad=False)], "0", "count_include_pad is False; it must be True"),
        ([nn.AvgPool3d(2, divisor_override=3)], "0", "divisor_override is 3; it must be None"),
        ([nn.AdaptiveAvgPool2d((3, None))], "0", "output_size is (3, None); it must be numbers"),
        ([nn.AdaptiveMaxPool2d(2)], "0", "no layer of a stack does what it does"),
        ([nn.Conv2d(1, 2, 3), nn.MaxPool1d(2)], "1", "it has 1 spatial dimensions, but the layers before have 2"),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm1d(2)], "1", "it has 1 spatial dimensions, but the layers before have 2"),
        ([nn.Conv2d(1, 2, 3), nn.BatchNorm2d(3).eval()], "1", "it has 3 features, but the layer before has 2 channels"),
        (
            [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)],
            "1",
            "1 (BatchNorm2d): it is in training mode, where its output depends",
        ),
        (
            [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2, track_running_stats=False).eval()],
            "1",
            "it has no running statistics",
        ),
        ([nn.Conv2d(1, 2, 3), nn.ReLU(), nn.BatchNorm2d(2).eval()], "2", "it must directly follow a convolution"),
        ([nn.BatchNorm2d(2).eval()], "0", "it must directly follow a convolution"),
        ([nn.Conv2d(1, 2, 3), *(nn.BatchNorm2d(2).eval() for _ in "12")], "2", "which takes one batch norm"),
        ([nn.Conv2d(1, 2, 3), nn.SyncBatchNorm(2).eval()], "1", "1 (SyncBatchNorm): no layer of a stack"),
        ([nn.Conv2d(1, 2, 3), nn.Dropout()], "1", "1 (Dropout): it is in training mode, where its output is random"),
        ([nn.LazyConv2d(2, 3)], "0", "0 (LazyConv2d): it has no weight yet; run the network once before"),
        ([nn.Conv2d(1, 2, 3), nn.Linear(3, 3)], "1", "1 (Linear): it needs a Flatten before it"),
        ([nn.Flatten(0), nn.Linear(3, 3)], "0", "it must be the first one, from dimension 1 to the last"),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(3, 3)], "2", "give input_shape"),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.MaxPool2d(2)], "2", "behind a Flatten there may be Linear"),
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.ReLU()], "2", "it must directly follow a convolution"),
        ([nn.Flatten()], "", "a Flatten at the end has no counterpart"),
        ([Own(nn.Conv2d(1, 1, 1))], "0", "0 (Own): no layer of a stack does what it does"),
        ([Wider(1, 1, 1)], "0", "0 (Wider): no layer of a stack does what it does"),
        ([hooked()], "0", "0 (Conv2d): it has hooks, which a stack would not call"),
    ],
)
def test_what_a_stack_cannot_do_is_refused_by_path_and_reason(modules: list[Any], path: str, complaint: str) -> None:
    with pytest.raises(InvalidConvolution) as refused:
        describe(nn.Sequential(*modules))
    assert complaint in refused.value.message
    assert refused.value.field == path


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ((1, 1, 6, 6), "2 (Linear): it takes 8 features, but the map is (2, 4, 4)"),
        ((1, 6, 6), "input_shape is (1, 6, 6); it must be (N, C, *S), with a batch dimension"),
        ((1, 3, 6, 6), "input has 3 channels"),
        ((1, 1, 2, 6), "kernel dimension 0 is 3, larger than the padded input"),
    ],
)
def test_an_input_that_does_not_fit_the_linear_layer_is_refused(shape: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(InvalidConvolution) as refused:
        describe(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)), shape)
    assert complaint in refused.value.message
    assert refused.value.field == "2"


@pytest.mark.parametrize("module", [3, None, [], nn.ReLU])
def test_what_is_no_module_is_named(module: Any) -> None:  # noqa: ANN401 - what is tested
    with pytest.raises(InvalidConvolution, match=rf"^module is a {type(module).__name__}; it must be ") as refused:
        describe(module)
    assert refused.value.field == "module"


def test_a_module_alone_is_named_as_such() -> None:
    with pytest.raises(InvalidConvolution, match=r"the module \(Softmax\): no layer"):
        describe(nn.Softmax(1))
    (layer,) = describe(nn.Conv3d(1, 1, 1))
    assert repr(layer).startswith("Conv(weight=float32 (1, 1, 1, 1, 1), bias=float32 (1,)")
