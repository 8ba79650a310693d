"""Messages that say nothing that the core knows, and parameters that become no message."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from tests.core.operations import operation_from_proto

from convolver.core.codec import execution_from_proto
from convolver.core.errors import InvalidConvolution
from convolver.core.operation import Tensor
from convolver.core.request_codec import single_to_proto
from convolver.v1 import convolution_pb2 as pb
from convolver.v1 import tensor_pb2

IMAGE, KERNEL = Tensor("float32", (1, 3, 8, 8)), Tensor("float32", (4, 3, 3, 3))


def travelled(message: Any) -> Any:  # noqa: ANN401 - any message, and one of its kind
    """The message as it comes out at the other end."""
    return type(message).FromString(message.SerializeToString())


def convolution(**changes: Any) -> pb.Convolution:  # noqa: ANN401 - fields
    """A request in order, but for these fields of it."""
    message = single_to_proto(IMAGE, KERNEL, None, {})
    message.MergeFrom(pb.Convolution(**changes))
    return message


def with_parameters(**fields: Any) -> pb.Convolution:  # noqa: ANN401 - fields
    message = convolution()
    message.layers[0].definition.parameters.MergeFrom(pb.Parameters(**fields))
    return message


def with_activation(value: int) -> pb.Convolution:
    message = convolution()
    message.layers[0].definition.activation = value  # type: ignore[assignment]  # unknown on purpose
    return message


UNKNOWN: dict[str, tuple[pb.Convolution, str]] = {
    "padding": (with_parameters(padding_word=77), "padding is 77"),
    "padding_mode": (with_parameters(padding_mode=77), "padding_mode is 77"),
    "layout": (with_parameters(layout=77), "layout is 77"),
    "activation": (with_activation(77), "activation is 77"),
    "overflow": (convolution(overflow=77), "overflow is 77"),
    "input.dtype": (convolution(input=tensor_pb2.Tensor(dtype=77)), "input.dtype is 77"),  # type: ignore[arg-type]  # unknown
    "output.dtype": (convolution(output_dtype=77), "output.dtype is 77"),
}


@pytest.mark.parametrize("field", UNKNOWN)
def test_a_number_that_the_contract_does_not_know_is_refused_by_its_field(field: str) -> None:
    message, says = UNKNOWN[field]
    with pytest.raises(InvalidConvolution, match=says) as caught:
        operation_from_proto(travelled(message))
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["precision", "algorithm", "priority"])
def test_unknown_numbers_of_execution_too(field: str) -> None:
    message = pb.Execution()
    setattr(message, field, 77)
    with pytest.raises(InvalidConvolution, match=f"{field} is 77") as caught:
        execution_from_proto(travelled(message))
    assert caught.value.field == field


def test_a_missing_input_is_refused() -> None:
    message = convolution()
    message.ClearField("input")
    with pytest.raises(InvalidConvolution, match="input is missing") as caught:
        operation_from_proto(message)
    assert caught.value.field == "input"


def test_a_missing_weight_is_refused() -> None:
    message = convolution()
    message.layers[0].definition.ClearField("weight")
    with pytest.raises(InvalidConvolution, match="weight is missing") as caught:
        operation_from_proto(message)
    assert caught.value.field == "weight"


def test_a_missing_type_is_refused() -> None:
    bare = convolution()
    bare.input.ClearField("dtype")
    with pytest.raises(InvalidConvolution, match=r"input\.dtype is 0"):
        operation_from_proto(bare)


ODD_PADDINGS = {
    "no word": (pb.Parameters(padding_word=pb.PADDING_WORD_UNSPECIFIED), "UNSPECIFIED"),
    "fewer ends": (pb.Parameters(explicit_padding=pb.ExplicitPadding(begin=[1, 2], end=[1])), "2 begins, but 1 ends"),
    "one of two": (pb.Parameters(explicit_padding=pb.ExplicitPadding(begin=[1], end=[1])), "1 pairs"),
}


@pytest.mark.parametrize("name", ODD_PADDINGS)
def test_odd_paddings_are_refused(name: str) -> None:
    parameters, says = ODD_PADDINGS[name]
    message = convolution()
    message.layers[0].definition.parameters.CopyFrom(parameters)
    with pytest.raises(InvalidConvolution, match=says) as caught:
        operation_from_proto(travelled(message))
    assert caught.value.field == "padding"


MANY = [1] * 3_000_000
LONG = {
    "input.shape": convolution(input=tensor_pb2.Tensor(shape=MANY)),
    "stride": with_parameters(stride=MANY),
    "output_size": with_parameters(output_size=MANY),
    "padding": with_parameters(explicit_padding=pb.ExplicitPadding(begin=MANY, end=MANY)),
}


@pytest.mark.parametrize("field", LONG)
def test_a_list_of_millions_is_refused_unread(field: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidConvolution, match=rf"{field} has 300000\d entries; .* at most 5") as caught:
            operation_from_proto(LONG[field])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.field == field
    assert peak < 100_000


@pytest.mark.parametrize("field", ["groups", "batch_groups"])
def test_groups_of_0_are_not_taken_for_the_default(field: str) -> None:
    with pytest.raises(InvalidConvolution, match=f"{field} is 0; it must be at least 1"):
        operation_from_proto(travelled(with_parameters(**{field: 0})))


WRONG: dict[str, Any] = {
    "padding": "smae",
    "padding_mode": "mirror",
    "layout": "NHWC",
    "activation": "swish",
    "overflow": "clip",
    "output_dtype": "float33",
    "groups": 1.5,
    "batch_groups": 10**5000,
    "padding_value": 2**53 + 1,
    "stride": (1, 2, 3),
    "flip": "no",
    "transposed": 1,
    "precision": "exact",
}


@pytest.mark.parametrize("field", WRONG)
def test_what_is_no_parameter_does_not_become_a_message(field: str) -> None:
    given_one: Any = {field: WRONG[field]}
    with pytest.raises(InvalidConvolution) as caught:
        single_to_proto(IMAGE, KERNEL, None, given_one)
    assert caught.value.field == field
