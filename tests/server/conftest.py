"""Plain gRPC channels to the shared server, and to one for layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from tests.server import hold_calls
from tests.server.layer_calls import BUDGET

from convolver.v1 import layer_service_pb2
from convolver.v1.layer_service_pb2_grpc import LayerServiceStub

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer


@pytest.fixture(scope="session")
def channel(server: RunningServer) -> Iterator[grpc.Channel]:
    """A channel without options, as other languages' clients make one."""
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="session")
def layer_server(serve_all: Callable[..., RunningServer]) -> RunningServer:
    """A server for the tests of layers alone."""
    return serve_all("--backend=reference", f"--layer-budget={BUDGET}")


@pytest.fixture(scope="session")
def layer_channel(layer_server: RunningServer) -> Iterator[grpc.Channel]:
    """A channel to that server."""
    with grpc.insecure_channel(layer_server.address) as channel:
        yield channel


@pytest.fixture
def layer_stub(layer_channel: grpc.Channel) -> LayerServiceStub:
    """The stub of that server, which holds nothing."""
    stub = LayerServiceStub(layer_channel)
    while held := stub.ListLayers(layer_service_pb2.ListLayersRequest()).layers:
        for layer in held:
            stub.DeleteLayer(layer_service_pb2.DeleteLayerRequest(digest=layer.digest))
    return stub


@pytest.fixture(scope="session")
def sharing_server(serve_all: Callable[..., RunningServer]) -> RunningServer:
    """A server that shares memory."""
    return serve_all("--shared-memory", f"--shared-memory-budget={hold_calls.BUDGET}")


@pytest.fixture(scope="session")
def sharing_channel(sharing_server: RunningServer) -> Iterator[grpc.Channel]:
    """A channel to that server."""
    with grpc.insecure_channel(sharing_server.address) as channel:
        yield channel


@pytest.fixture
def hold(sharing_channel: grpc.Channel, sharing_server: RunningServer) -> Iterator[hold_calls.OpenHold]:
    """An open Hold call of a server that shares nothing else."""
    hold_calls.until_nothing_is_shared(sharing_server)
    with hold_calls.OpenHold(sharing_channel) as hold:
        yield hold
    hold_calls.until_nothing_is_shared(sharing_server)
