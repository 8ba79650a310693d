"""Convolve, Plan and GetInfo as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from tests.contract import (
    ANSWER,
    FLOAT32,
    IMAGE,
    KERNEL,
    call,
    convolution,
    good_request,
    output,
    refused,
    request,
)

from convolver.core import dtypes
from convolver.core.wire import split
from convolver.v1 import convolution_pb2, plan_pb2, tensor_pb2
from convolver.v1 import convolution_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.conftest import RunningServer

    from convolver.v1.convolution_pb2 import Convolution


def test_convolve_answers_with_the_output(channel: grpc.Channel) -> None:
    np.testing.assert_array_equal(output(call(channel, good_request())), ANSWER)


def as_fields(message: bytes) -> tuple[bytes, list[bytes]]:
    """A ConvolveRequest's header, and each entry of data as a field of its own, tag and length included."""
    header, entries = split(message)
    return header, [pb.ConvolveRequest(data=[bytes(entry)]).SerializeToString() for entry in entries]


def in_two_parts(header: bytes) -> tuple[bytes, bytes]:
    """Two fields `convolution` that protobuf merges into one."""
    whole = pb.ConvolveRequest.FromString(header).convolution
    layers = pb.ConvolveRequest(convolution=convolution_pb2.Convolution(layers=whole.layers))
    rest = pb.ConvolveRequest(convolution=convolution_pb2.Convolution(input=whole.input))
    return layers.SerializeToString(), rest.SerializeToString()


def test_data_may_stand_before_the_header(channel: grpc.Channel) -> None:
    header, (weight, image) = as_fields(good_request())
    np.testing.assert_array_equal(output(call(channel, weight + image + header)), ANSWER)


def test_data_may_stand_on_both_sides_of_the_header(channel: grpc.Channel) -> None:
    header, (weight, image) = as_fields(good_request())
    np.testing.assert_array_equal(output(call(channel, weight + header + image)), ANSWER)


def test_a_header_in_two_parts_is_one_header(channel: grpc.Channel) -> None:
    header, (weight, image) = as_fields(good_request())
    first, second = in_two_parts(header)
    np.testing.assert_array_equal(output(call(channel, second + weight + first + image)), ANSWER)


def test_filler_is_ignored(channel: grpc.Channel) -> None:
    header, (weight, image) = as_fields(good_request())
    filler = pb.ConvolveRequest(filler=b"anything").SerializeToString()
    message = filler + header + filler + weight + filler + image + filler
    np.testing.assert_array_equal(output(call(channel, message)), ANSWER)


def test_a_field_that_is_not_known_is_refused_beside_the_convolution_too(channel: grpc.Channel) -> None:
    answer = refused(channel, good_request() + b"\xa2\x06\x02hi")  # field 100, length-delimited
    assert answer.code == grpc.StatusCode.UNIMPLEMENTED
    assert "the field request.100" in answer.text


def test_explicit_sources_say_where_each_tensor_is(channel: grpc.Channel) -> None:
    header = convolution()
    header.input_source.index = 0
    header.layers[0].weight_source.index = 1
    np.testing.assert_array_equal(output(call(channel, request(header, IMAGE, KERNEL))), ANSWER)


def with_bias() -> Convolution:
    header = convolution()
    header.layers[0].definition.bias.CopyFrom(tensor_pb2.Tensor(dtype=FLOAT32, shape=[1]))
    return header


def test_the_bias_stands_between_weight_and_input(channel: grpc.Channel) -> None:
    answer = call(channel, request(with_bias(), KERNEL, np.float32(100).tobytes(), IMAGE))
    np.testing.assert_array_equal(output(answer), ANSWER + 100)


def test_all_three_sources_may_be_explicit(channel: grpc.Channel) -> None:
    header = with_bias()
    header.layers[0].bias_source.index, header.layers[0].weight_source.index, header.input_source.index = 0, 2, 1
    answer = call(channel, request(header, np.float32(100).tobytes(), IMAGE, KERNEL))
    np.testing.assert_array_equal(output(answer), ANSWER + 100)


@pytest.mark.parametrize("outputs", [1, 2, 3, 5, 64, 65])
def test_the_data_of_an_answer_is_aligned_to_16_bytes(channel: grpc.Channel, outputs: int) -> None:
    header = convolution((1, 1, outputs), (1, 1, 1))
    answer = call(channel, request(header, np.ones(1, np.float32), np.ones(outputs, np.float32)))
    _, (data,) = split(answer)
    offset = np.frombuffer(data, np.uint8).ctypes.data - np.frombuffer(answer, np.uint8).ctypes.data
    assert (len(data), offset % 16) == (4 * outputs, 0)


@pytest.mark.parametrize("name", dtypes.TABLE)
def test_a_kernel_of_one_gives_the_input_back_in_every_type(channel: grpc.Channel, name: str) -> None:
    row = dtypes.TABLE[name]
    header = convolution((1, 1, 4), (1, 1, 1), tensor_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}"))
    image = np.array([0, 1, 1, 0]).astype(row.numpy)
    answer = call(channel, request(header, np.ones(1).astype(row.numpy), image))
    assert output(answer, row.numpy).tobytes() == image.tobytes()


@pytest.mark.parametrize("name", [name for name, row in dtypes.TABLE.items() if not row.exact])
def test_the_bytes_of_a_tensor_may_stand_anywhere(channel: grpc.Channel, backend: str, name: str) -> None:
    dtype = tensor_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}")
    header = convolution((1, 2, 4, 5), (2, 2, 2, 2), dtype)
    header.execution.backend, header.execution.deterministic = backend, True
    header.layers[0].definition.parameters.explicit_padding.begin.extend([1, 2])
    header.layers[0].definition.parameters.explicit_padding.end.extend([0, 1])
    kernel, image = (np.arange(size).astype(dtypes.TABLE[name].numpy) for size in (16, 40))
    message = request(header, kernel, image)
    fillers = [pb.ConvolveRequest(filler=bytes(size)).SerializeToString() for size in range(0, 16, 3)]
    answers = [pb.ConvolveResponse.FromString(call(channel, filler + message)) for filler in fillers]
    assert len({bytes(answer.data[0]) for answer in answers}) == 1


def test_an_empty_batch_has_an_empty_answer(channel: grpc.Channel) -> None:
    answer = call(channel, request(convolution((0, 1, 3, 3)), KERNEL, b""))
    assert output(answer).shape == (0, 1, 2, 2)


def changed(change: Callable[[Convolution], object]) -> Convolution:
    header = convolution()
    change(header)
    return header


@pytest.mark.parametrize(
    "header",
    [
        convolution(),
        with_bias(),
        changed(
            lambda c: setattr(c.layers[0].definition.parameters, "padding_word", convolution_pb2.PADDING_WORD_SAME)
        ),
        changed(lambda c: c.layers[0].definition.parameters.stride.extend([2, 1])),
        changed(lambda c: setattr(c.execution, "backend", "reference")),
        changed(lambda c: setattr(c, "output_dtype", tensor_pb2.DATA_TYPE_FLOAT64)),
    ],
    ids=["plain", "bias", "same", "stride", "reference", "wider output"],
)
def test_plan_says_what_convolve_then_does(channel: grpc.Channel, header: Convolution) -> None:
    biases = [np.float32(1).tobytes()] if header.layers[0].definition.HasField("bias") else []
    answer = pb.ConvolveResponse.FromString(call(channel, request(header, KERNEL, *biases, IMAGE)))
    asked = pb.PlanRequest(convolution=header).SerializeToString()
    assert pb.PlanResponse.FromString(call(channel, asked, "Plan")).plan == answer.result.plan


def test_plan_ignores_sources(channel: grpc.Channel) -> None:
    header = changed(lambda c: setattr(c.input_source.region, "id", "nobody's"))
    answer = pb.PlanResponse.FromString(call(channel, pb.PlanRequest(convolution=header).SerializeToString(), "Plan"))
    assert list(answer.plan.outputs[0].shape) == [1, 1, 2, 2]


def test_the_report_has_the_device_and_the_seconds_of_each_phase(channel: grpc.Channel) -> None:
    report = pb.ConvolveResponse.FromString(call(channel, good_request())).result.report
    assert report.device
    assert (report.batch_size, report.unbatched_reason) == (1, plan_pb2.UNBATCHED_REASON_ALONE)
    seconds = report.seconds
    assert seconds.decode > 0
    assert seconds.queue > 0
    assert seconds.compute > 0


def source(index: int) -> Callable[[Convolution], object]:
    return lambda header: setattr(header.input_source, "index", index)


@pytest.mark.parametrize(
    ("header", "data", "field", "words"),
    [
        (changed(source(7)), [KERNEL, IMAGE], "input_source", ["7", "2"]),
        (changed(source(0)), [KERNEL, IMAGE], "input_source", ["weight", "0"]),
        (changed(lambda c: setattr(c.input_source, "omitted", True)), [KERNEL, IMAGE], "input_source", ["omitted"]),
        (convolution(), [KERNEL, IMAGE, b""], "data", ["3", "2"]),
        (convolution(), [KERNEL], "input_source", ["1", "1"]),
        (convolution(), [], "weight_source", ["0", "0"]),
    ],
    ids=["no such entry", "an entry named twice", "omitted", "one entry too many", "one too few", "no data"],
)
def test_each_entry_of_data_must_be_some_tensors(
    channel: grpc.Channel, header: Convolution, data: Sequence[bytes], field: str, words: list[str]
) -> None:
    refusal = refused(channel, request(header, *data))
    assert (refusal.code.name, refusal.field) == ("INVALID_ARGUMENT", field)
    assert all(word in refusal.text for word in words), refusal.text


def test_the_same_header_with_other_bytes_is_computed_anew(channel: grpc.Channel) -> None:
    twice = [output(call(channel, request(convolution(), KERNEL, image))) for image in (IMAGE, 2 * IMAGE)]
    np.testing.assert_array_equal(twice, [ANSWER, 2 * ANSWER])


def test_info_tells_the_settings_that_refuse(serve: Callable[..., RunningServer]) -> None:
    flags = {
        "--max-message": 2**20,
        "--max-output-elements": 1000,
        "--max-request-bytes": 2**21,
        "--max-work": 10**6,
        "--memory-budget": 2**22,
    }
    running = serve("--backend", "reference", "--threads", "1", *(f"{flag}={value}" for flag, value in flags.items()))
    info = information(running)
    limits = [value for _, value in info.limits.ListFields()]
    assert limits == list(flags.values())
    assert [(backend.name, backend.threads) for backend in info.backends] == [("reference", 1)]
    assert set(info.versions) >= {"convolver", "python", "numpy", "grpcio", "protobuf"}
    assert set(info.backends[0].dtypes) == set(tensor_pb2.DataType.values()) - {tensor_pb2.DATA_TYPE_UNSPECIFIED}
    assert running.stop() == 0


def information(running: RunningServer) -> pb.GetInfoResponse:
    import grpc

    with grpc.insecure_channel(running.address) as channel:
        return pb.GetInfoResponse.FromString(call(channel, b"", "GetInfo"))
