"""`convolver health`: the container's HEALTHCHECK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

from convolver.client.errors import ServiceUnavailable

if TYPE_CHECKING:
    import grpc

Address = Annotated[
    str, typer.Argument(metavar="[ADDRESS]", envvar="CONVOLVER_ADDRESS", help="host:port or unix:/path.")
]
Service = Annotated[str, typer.Option(help="The service to ask for; '' asks whether the server is alive at all.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds to wait.")]


def health(
    address: Address = "127.0.0.1:50051",
    *,
    service: Service = "convolver.v1.ConvolutionService",
    timeout: Timeout = 3.0,
) -> None:
    """Ask a server through grpc.health.v1 whether it serves: status 0 if it does, 1 if not or if nobody answers."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            stub = health_pb2_grpc.HealthStub(channel)
            response = stub.Check(request, timeout=timeout)  # type: ignore[attr-defined]  # the stubs lack it
        except grpc.RpcError as error:
            raise _unanswered(address, service, error) from error
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)
    typer.echo(status)
    raise typer.Exit(status != "SERVING")


def _unanswered(address: str, service: str, error: grpc.RpcError) -> ServiceUnavailable:
    call = cast("grpc.Call", error)
    if call.code().name == "NOT_FOUND":
        return ServiceUnavailable(f"{address} knows no service {service}")
    return ServiceUnavailable(f"{address} gives no answer: {call.code().name}: {call.details()}")
