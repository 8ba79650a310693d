"""The client's methods against torch.nn.functional, whose arguments they take; on integers both are exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import grpc
import numpy as np
import pytest
from tests.contract import call as raw_call
from tests.contract import convolution, request

from convolver.client import Answer, Client, Info, Plan, Report
from convolver.client._client_shared import error_of
from convolver.core.errors import IntegerOverflow, InvalidConvolution, Unsupported

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray
    from tests.conftest import RunningServer

    Array = NDArray[Any]


def integers(*shape: int) -> Array:
    """Small integers as float32: every sum of their products is exact."""
    return (np.arange(np.prod(shape)) % 7 - 3).reshape(shape).astype(np.float32)


def theirs(name: str, arrays: Sequence[Array], *arguments: Any, **named: Any) -> Array:  # noqa: ANN401 - torch's own
    torch = pytest.importorskip("torch", reason="torch is what the result is compared with")
    function = getattr(torch.nn.functional, name)
    answer: Array = function(*map(torch.from_numpy, arrays), *arguments, **named).numpy()
    return answer


def check_same(
    client: Client,
    name: str,
    arrays: Sequence[Array],
    *arguments: Any,  # noqa: ANN401 - torch's own
    **named: Any,  # noqa: ANN401 - torch's own
) -> None:
    ours = getattr(client, name)(*arrays, *arguments, **named)
    np.testing.assert_array_equal(ours, theirs(name, arrays, *arguments, **named))


SIZES = {1: (9,), 2: (9, 8), 3: (6, 7, 5)}
KERNELS = {1: (3,), 2: (3, 2), 3: (3, 2, 2)}


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_conv_has_torchs_defaults(client: Client, ndim: int) -> None:
    check_same(client, f"conv{ndim}d", [integers(2, 3, *SIZES[ndim]), integers(4, 3, *KERNELS[ndim])])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_conv_takes_torchs_arguments_by_position(client: Client, ndim: int) -> None:
    arrays = [integers(2, 4, *SIZES[ndim]), integers(6, 2, *KERNELS[ndim]), integers(6)]
    check_same(client, f"conv{ndim}d", arrays, 2, 1, 2, 2)  # stride, padding, dilation, groups


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_conv_transpose_has_torchs_defaults(client: Client, ndim: int) -> None:
    check_same(client, f"conv_transpose{ndim}d", [integers(2, 3, *SIZES[ndim]), integers(3, 4, *KERNELS[ndim])])


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_conv_transpose_takes_torchs_arguments_by_position(client: Client, ndim: int) -> None:
    arrays = [integers(2, 4, *SIZES[ndim]), integers(4, 3, *KERNELS[ndim]), integers(6)]
    check_same(client, f"conv_transpose{ndim}d", arrays, 3, 1, 2, 2, 2)  # ..., output_padding, groups, dilation


def test_arguments_may_differ_by_dimension(client: Client) -> None:
    arrays = [integers(1, 2, 9, 8), integers(3, 2, 3, 2)]
    check_same(client, "conv2d", arrays, stride=(2, 1), padding=(0, 2), dilation=[1, 3])


def test_an_input_without_a_batch_has_an_answer_without_one(client: Client) -> None:
    check_same(client, "conv2d", [integers(3, 9, 8), integers(4, 3, 3, 2)])


@pytest.mark.parametrize("padding", [1, (1,), (1, 2), [2, 0], "valid", "same"], ids=repr)
def test_padding_takes_torchs_forms(client: Client, padding: Any) -> None:  # noqa: ANN401 - several forms
    check_same(client, "conv2d", [integers(1, 2, 9, 8), integers(3, 2, 3, 5)], padding=padding)


def test_padding_takes_pairs_of_begin_and_end(client: Client) -> None:
    image, weight = integers(1, 2, 5, 6), integers(3, 2, 3, 2)
    padded = np.pad(image, ((0, 0), (0, 0), (1, 2), (3, 0)))
    ours = client.conv2d(image, weight, padding=[(1, 2), (3, 0)])
    np.testing.assert_array_equal(ours, theirs("conv2d", [padded, weight]))


def test_in_one_dimension_a_pair_stands_in_a_list(client: Client) -> None:
    ours = client.conv1d(integers(1, 1, 5), integers(1, 1, 2), padding=[(1, 2)])
    assert ours.shape == (1, 1, 7)


def test_the_rank_must_be_the_methods(client: Client) -> None:
    with pytest.raises(InvalidConvolution, match=r"weight \(1, 1, 2\) has 3 dimensions; conv2d takes 4") as caught:
        client.conv2d(integers(1, 1, 5), integers(1, 1, 2))
    assert caught.value.field == "weight.shape"


def test_convolve_takes_the_rank_from_the_weight(client: Client) -> None:
    arrays = [integers(2, 3, 9), integers(4, 3, 3)]
    np.testing.assert_array_equal(client.convolve(*arrays), theirs("conv1d", arrays))


def test_run_gives_output_plan_and_report(client: Client) -> None:
    image, weight = integers(1, 2, 5, 5), integers(3, 2, 3, 3)
    answer = client.run(image, weight, padding="same")
    assert (type(answer), type(answer.plan), type(answer.report)) == (Answer, Plan, Report)
    np.testing.assert_array_equal(answer.output, client.convolve(image, weight, padding=1))
    assert answer.plan.parameters["padding"] == ((1, 1), (1, 1))
    assert answer.report.seconds.keys() == {"decode", "queue", "copy_in", "compute", "copy_out", "encode"}
    assert answer.report.seconds["compute"] > 0


@pytest.mark.parametrize("bias", [None, integers(3)], ids=["without bias", "with bias"])
def test_plan_is_the_plan_of_run(client: Client, bias: Array | None) -> None:
    parameters: dict[str, Any] = {"stride": 2, "padding": "same", "activation": "relu", "output_dtype": "float64"}
    planned = client.plan((1, 2, 5, 5), (3, 2, 3, 3), bias=bias is not None, **parameters)
    assert planned == client.run(integers(1, 2, 5, 5), integers(3, 2, 3, 3), bias, **parameters).plan
    assert planned.output_shape == (1, 3, 3, 3)


def test_plan_sends_no_data(client: Client) -> None:
    plan = client.plan((1, 64, 1000, 1000), (64, 64, 3, 3), dtype="bfloat16")
    assert (plan.output_shape, plan.output_bytes) == ((1, 64, 998, 998), 64 * 998 * 998 * 2)


def test_info_names_versions_back_ends_devices_types_and_limits(client: Client) -> None:
    info = client.info()
    assert type(info) is Info
    assert info.backends[0].name == "reference"
    assert {"float32", "bfloat16", "int8", "bool"} <= set(info.dtypes)
    assert info.devices
    assert info.limits["max_message_bytes"] == 64 * 2**20
    assert info.versions.keys() >= {"convolver", "numpy"}


def test_a_result_is_the_callers_to_write_to(client: Client) -> None:
    output = client.conv2d(integers(1, 1, 4, 4), integers(1, 1, 2, 2))
    output += 1
    assert output.flags.owndata


def test_inputs_are_left_as_they_are(client: Client) -> None:
    image, weight = integers(1, 1, 4, 4), integers(1, 1, 2, 2)
    client.conv2d(image, weight, padding=1, flip=True)
    np.testing.assert_array_equal(image, integers(1, 1, 4, 4))
    np.testing.assert_array_equal(weight, integers(1, 1, 2, 2))


@pytest.mark.parametrize("method", ["convolve", "conv2d", "run"])
def test_a_misspelt_parameter_is_an_error(client: Client, method: str) -> None:
    with pytest.raises(InvalidConvolution, match="'strid' is no parameter") as caught:
        getattr(client, method)(integers(1, 1, 4, 4), integers(1, 1, 2, 2), strid=2)
    assert caught.value.field == "strid"


def test_a_misspelt_parameter_of_plan_is_an_error_too(client: Client) -> None:
    with pytest.raises(InvalidConvolution, match="'paddin' is no parameter"):
        client.plan((1, 1, 4, 4), (1, 1, 2, 2), paddin=2)  # type: ignore[call-arg]  # what is tested


@pytest.mark.parametrize("missing", ["input", "weight"])
def test_none_is_no_array(client: Client, missing: str) -> None:
    arrays = {"input": integers(1, 1, 4, 4), "weight": integers(1, 1, 2, 2)} | {missing: None}
    with pytest.raises(InvalidConvolution, match=f"{missing} has dtype object"):
        client.convolve(**cast("Any", arrays))


def test_parameters_that_python_calls_equal_are_told_apart(client: Client) -> None:
    arrays = integers(1, 1, 4, 4), integers(1, 1, 2, 2)
    assert client.convolve(*arrays, stride=1).shape == (1, 1, 3, 3)
    with pytest.raises(InvalidConvolution, match=r"stride is 1\.0; it must be an integer"):
        client.convolve(*arrays, stride=cast("int", 1.0))


def test_a_list_of_parameters_is_read_anew_each_time(client: Client) -> None:
    stride = [1, 1]
    arrays = integers(1, 1, 4, 4), integers(1, 1, 2, 2)
    shapes = []
    for step in (1, 2):
        stride[0] = step
        shapes.append(client.convolve(*arrays, stride=stride).shape)
    assert shapes == [(1, 1, 3, 3), (1, 1, 2, 3)]


def test_an_error_arrives_as_the_server_raised_it(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as failed:
        raw_call(channel, request(convolution((1, 3, 8, 8), (16, 4, 3, 3))))
    with pytest.raises(InvalidConvolution) as local, Client("localhost:1") as client:  # refused before it would connect
        client.convolve(integers(1, 3, 8, 8), integers(16, 4, 3, 3))
    sent = error_of(failed.value, server.address, None)
    assert (type(sent), vars(sent)) == (type(local.value), vars(local.value))


def test_an_integer_that_does_not_fit_is_named_with_its_place(client: Client) -> None:
    image = np.array([[[1, 100, 100]]], np.uint8)
    with pytest.raises(IntegerOverflow, match=r"output\[0, 0, 1\] is 300"):
        client.conv1d(image, np.array([[[1, 2]]], np.uint8))


def test_a_back_end_that_is_not_there_is_unsupported(client: Client) -> None:
    with pytest.raises(Unsupported, match="nobody's"):
        client.conv1d(integers(1, 1, 3), integers(1, 1, 1), backend="nobody's")


def written_by(method: Callable[..., object]) -> list[str]:
    return list(method.__code__.co_varnames[1 : method.__code__.co_argcount])


def test_the_arguments_have_torchs_names_in_torchs_order() -> None:
    forward = ["input", "weight", "bias", "stride", "padding", "dilation", "groups"]
    transposed = ["input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"]
    for ndim in (1, 2, 3):
        assert written_by(getattr(Client, f"conv{ndim}d")) == forward
        assert written_by(getattr(Client, f"conv_transpose{ndim}d")) == transposed
