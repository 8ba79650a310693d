"""A convolution service written the obvious way, to measure against: grpcio threads, protobuf fields, tobytes, torch.

`python -m benchmarks.naive` serves on a free port of 127.0.0.1, prints it, and ends when its standard input does.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import numpy as np
import torch

from benchmarks._convolutions import FUNCTIONS
from convolver.v1 import convolution_pb2, convolution_service_pb2, plan_pb2, tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

Request = convolution_service_pb2.ConvolveRequest
Response = convolution_service_pb2.ConvolveResponse
METHOD = "/benchmarks.Naive/Convolve"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def serve() -> None:
    """Until standard input ends."""
    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    handler = grpc.unary_unary_rpc_method_handler(convolve, Request.FromString, Response.SerializeToString)
    service, name = METHOD.lstrip("/").split("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(0)


def convolve(request: convolution_service_pb2.ConvolveRequest, _: object) -> convolution_service_pb2.ConvolveResponse:
    """Parse, compute, serialise."""
    definition = request.convolution.layers[0].definition
    weight = np.frombuffer(request.data[0], np.float32).reshape(tuple(definition.weight.shape)).copy()
    image = np.frombuffer(request.data[1], np.float32).reshape(tuple(request.convolution.input.shape)).copy()
    parameters = definition.parameters
    convolution = FUNCTIONS[image.ndim]
    with torch.inference_mode():
        output = convolution(
            torch.from_numpy(image),
            torch.from_numpy(weight),
            padding=tuple(parameters.explicit_padding.begin),
            stride=tuple(parameters.stride) or 1,
            groups=parameters.groups or 1,
        ).numpy()
    header = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=output.shape)
    result = plan_pb2.Result(plan=plan_pb2.Plan(outputs=[header]))
    return Response(result=result, data=[output.tobytes()])


def caller(
    port: int, padding: int = 1, stride: int = 1, groups: int = 1
) -> Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]:
    """A client of that service: a convolution with that padding and stride in every dimension."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)
    method = channel.unary_unary(
        METHOD, request_serializer=Request.SerializeToString, response_deserializer=Response.FromString
    )

    def convolve(image: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
        each = [padding] * (image.ndim - 2)
        parameters = convolution_pb2.Parameters(
            explicit_padding=convolution_pb2.ExplicitPadding(begin=each, end=each),
            stride=[stride] * len(each),
            groups=groups,
        )
        response = method(_request(image, weight, parameters))
        shape = tuple(response.result.plan.outputs[0].shape)
        return np.frombuffer(response.data[0], np.float32).reshape(shape)

    return convolve


def _request(
    image: NDArray[np.float32], weight: NDArray[np.float32], parameters: convolution_pb2.Parameters
) -> convolution_service_pb2.ConvolveRequest:
    float32 = tensor_pb2.DATA_TYPE_FLOAT32
    definition = convolution_pb2.LayerDefinition(
        parameters=parameters,
        weight=tensor_pb2.Tensor(dtype=float32, shape=weight.shape),
    )
    convolution = convolution_pb2.Convolution(
        layers=[convolution_pb2.Layer(definition=definition)],
        input=tensor_pb2.Tensor(dtype=float32, shape=image.shape),
    )
    return Request(convolution=convolution, data=[weight.tobytes(), image.tobytes()])


if __name__ == "__main__":
    serve()
