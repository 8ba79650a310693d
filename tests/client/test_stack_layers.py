"""The layers of a stack as callers write them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from convolver.client import AsyncClient, Client, Conv, HeldWeights, Pool
from convolver.core.errors import InvalidConvolution
from convolver.core.parameters import LayerParameters, MoreParameters, Parameters
from convolver.v1 import convolution_service_pb2, tensor_pb2

WEIGHT = np.zeros((4, 3, 2, 2), np.float32)


def test_a_weight_is_kept_as_it_is() -> None:
    bias = np.zeros(4)
    layer = Conv(WEIGHT, bias, stride=2, activation="relu")
    assert (layer.weight is WEIGHT, layer.bias is bias, layer.is_shape) == (True, True, False)
    assert layer.parameters == {"stride": 2, "activation": "relu"}


def test_arrays_of_any_library_are_weights() -> None:
    class ByDLPack:
        def __dlpack__(self) -> object:
            raise AssertionError("it is not read")  # construction does no work

    assert not Conv(ByDLPack(), ByDLPack()).is_shape


def test_torch_tensors_are_weights() -> None:
    torch: Any = pytest.importorskip("torch")
    weight = torch.zeros(4, 3, 2, 2, dtype=torch.bfloat16)
    assert Conv(weight).weight is weight
    assert Conv(weight.shape).is_shape
    assert repr(Conv(weight)) == "Conv(weight=bfloat16 (4, 3, 2, 2))"


def test_a_shape_stands_for_a_weight() -> None:
    layer = Conv((4, np.int64(3), 2, 2), bias=True)
    assert (layer.weight, layer.bias, layer.is_shape) == ((4, 3, 2, 2), True, True)
    assert Conv((4, 3, 2)).bias is False


def test_layers_are_shown_without_their_numbers() -> None:
    assert repr(Conv(WEIGHT, np.zeros(4, ml_dtypes.bfloat16), stride=(2, 1), padding="same")) == (
        "Conv(weight=float32 (4, 3, 2, 2), bias=bfloat16 (4,), stride=(2, 1), padding='same')"
    )
    assert repr(Conv((4, 3, 2), bias=True)) == "Conv(weight=(4, 3, 2), bias=True)"
    assert repr(Conv((4, 3, 2))) == "Conv(weight=(4, 3, 2))"
    assert repr(Pool("max", 2, stride=(1, 2))) == "Pool(kind='max', kernel=2, stride=(1, 2))"


def test_layers_do_not_change() -> None:
    for layer, field in ((Conv(WEIGHT), "weight"), (Pool("max", 2), "kernel")):
        with pytest.raises(FrozenInstanceError):
            setattr(layer, field, 3)


def test_pooling_keeps_what_was_given() -> None:
    assert Pool("max", 2, dilation=2).parameters == {"kind": "max", "kernel": 2, "dilation": 2}
    assert Pool("adaptive_average", output_size=(1, 1)).parameters == {
        "kind": "adaptive_average",
        "output_size": (1, 1),
    }


@pytest.mark.parametrize(
    ("make", "field", "complaint"),
    [
        (lambda: Conv([4, 3, 2]), "weight", "weight is a list; it must be an array, or a shape, which is a tuple"),
        (lambda: Conv(None), "weight", "weight is a NoneType"),
        (lambda: Conv((4, 3, 2.0)), "weight.shape[2]", "weight.shape[2] is 2.0; it must be an integer"),
        (lambda: Conv((4, -3, 2)), "weight.shape[1]", "weight.shape[1] is -3; it must be at least 0"),
        (lambda: Conv(WEIGHT, True), "bias", "bias is a bool; it must be an array; True and False go with"),  # noqa: FBT003 - the bias itself
        (lambda: Conv((4, 3, 2), np.zeros(4)), "bias", "bias is a ndarray; beside a weight's shape it must be True"),
        (lambda: Conv(WEIGHT, strid=2), "strid", "strid is not known; did you mean stride?"),  # type: ignore[call-arg]  # wrong on purpose
        (lambda: Conv(WEIGHT, backend="torch"), "backend", "backend is not known"),  # type: ignore[call-arg]  # likewise
        (lambda: Pool("min", 2), "kind", "kind is 'min', which is none of max, average"),  # type: ignore[arg-type]  # likewise
    ],
)
def test_what_is_no_layer_is_refused(make: Any, field: str, complaint: str) -> None:  # noqa: ANN401 - a lambda
    with pytest.raises(InvalidConvolution) as refused:
        make()
    assert complaint in refused.value.message
    assert refused.value.field == field


def test_a_layers_words_are_words_of_a_call() -> None:
    own = set(LayerParameters.__annotations__)
    assert own < set(Parameters.__annotations__)
    assert set(Parameters.__annotations__) == own | set(MoreParameters.__annotations__)
    assert len(own) == 14


@pytest.mark.parametrize("make", [Conv, lambda weight, **more: HeldWeights(weight, None, more)])
def test_to_change_the_parameters_that_are_shown_changes_no_layer(make: Any) -> None:  # noqa: ANN401 - a class
    layer = make(WEIGHT, stride=2)
    stack = Client("127.0.0.1:1").stack([layer])
    before = stack._composition.request(np.zeros((1, 3, 8, 8), np.float32)).message  # noqa: SLF001 - what would be sent
    layer.parameters["stride"] = 3
    stack.layers[0].parameters.clear()  # type: ignore[union-attr]  # a dict at run time
    again = Client("127.0.0.1:1").stack([layer])
    assert again._composition.request(np.zeros((1, 3, 8, 8), np.float32)).message == before  # noqa: SLF001 - likewise
    assert layer.parameters == {"stride": 2}


def test_a_plan_is_of_the_type_of_the_first_weights_that_are_there() -> None:
    def dtype_of(*layers: Conv | Pool) -> int:
        request = Client("127.0.0.1:1").stack(layers)._composition.plan_request((1, 3, 8, 8), None)  # noqa: SLF001 - what would be sent
        return convolution_service_pb2.PlanRequest.FromString(request).convolution.input.dtype

    shape, there = Conv((3, 3, 2, 2), True), Conv(np.zeros((4, 3, 2, 2), np.float64))  # noqa: FBT003 - the bias itself
    assert dtype_of(shape, there) == dtype_of(Pool("max", 1), there) == tensor_pb2.DATA_TYPE_FLOAT64
    assert dtype_of(shape) == tensor_pb2.DATA_TYPE_FLOAT32


def test_a_list_of_layers_is_of_one_type() -> None:
    """mypy reads this."""
    client, other = Client("127.0.0.1:1"), AsyncClient("127.0.0.1:1")
    layers = [Conv(WEIGHT), Pool("max", 2)]
    mixed = [Pool("max", 2), client.layer(WEIGHT), Conv(np.zeros((1, 4, 1, 1), np.float32))]
    likewise = [other.layer(WEIGHT), Pool("max", 2)]
    stacks = (client.stack(layers), other.stack(layers), client.stack(mixed), other.stack(likewise))
    assert [len(stack.layers) for stack in stacks] == [2, 2, 3, 2]
    assert client.stack(stacks[2].layers).layers == stacks[2].layers


@pytest.mark.parametrize("wrong", [None, np.array([None]), "text"])
def test_what_is_no_array_of_numbers_is_named(wrong: Any) -> None:  # noqa: ANN401 - what is tested
    client, frame = Client("127.0.0.1:1"), np.zeros((1, 3, 8, 8), np.float32)
    for layer in (client.layer(WEIGHT), client.stack([Conv(WEIGHT)])):
        for field, call in (
            ("input", lambda layer=layer: layer(wrong)),
            ("input", lambda layer=layer: list(layer.map([wrong]))),
            ("grad_output", lambda layer=layer: layer.gradients(frame, wrong)),
        ):
            with pytest.raises(InvalidConvolution, match=f"^{field} has dtype") as refused:
                call()
            assert refused.value.field == field
    with pytest.raises(InvalidConvolution, match=r"^layers\[0\]\.bias has dtype"):
        client.stack([Conv(WEIGHT, np.array([None]))])(frame)
