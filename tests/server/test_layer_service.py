"""LayerService as any gRPC client finds it: what is held, listed in pages and deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.server.layer_calls import (
    ABSENT,
    BIAS,
    FLOAT32,
    SERVICE,
    UNKNOWN,
    WEIGHT,
    definition,
    first,
    listed,
    metric,
    put,
    put_number,
    put_raw,
    refused,
    rest,
)

from convolver.v1 import layer_service_pb2 as pb
from convolver.v1 import tensor_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import RunningServer

    from convolver.v1.layer_service_pb2_grpc import LayerServiceStub


def test_the_same_layer_put_twice_is_held_once_and_used_again(layer_stub: LayerServiceStub) -> None:
    one, two = put_number(layer_stub, 1), put_number(layer_stub, 2)
    assert listed(layer_stub) == [two, one]
    assert put_number(layer_stub, 1) == one
    assert listed(layer_stub) == [one, two]


def test_to_get_or_list_a_layer_is_no_use_of_it(layer_stub: LayerServiceStub) -> None:
    one, two = put_number(layer_stub, 1), put_number(layer_stub, 2)
    layer_stub.GetLayer(pb.GetLayerRequest(digest=one))
    listed(layer_stub)
    assert listed(layer_stub) == [two, one]


def test_a_deleted_layer_is_not_found(layer_stub: LayerServiceStub) -> None:
    digest = put_number(layer_stub, 1)
    layer_stub.DeleteLayer(pb.DeleteLayerRequest(digest=digest))
    assert listed(layer_stub) == []
    for call in (layer_stub.GetLayer, layer_stub.DeleteLayer):
        answer = refused(lambda call=call: call(pb.GetLayerRequest(digest=digest)))  # type: ignore[misc]  # mypy takes no default here
        assert (answer.code, answer.info.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_LAYER")
        assert answer.info.metadata["digest"] == digest


@pytest.mark.parametrize("digest", ["", ABSENT[:-1], ABSENT.upper(), "x" * 10_000], ids=lambda digest: digest[:9])
def test_what_is_no_digest_is_refused(layer_stub: LayerServiceStub, digest: str) -> None:
    for call, request in ((layer_stub.GetLayer, pb.GetLayerRequest), (layer_stub.DeleteLayer, pb.DeleteLayerRequest)):
        answer = refused(lambda call=call, request=request: call(request(digest=digest)))  # type: ignore[misc]  # likewise
        assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "digest")


@pytest.mark.parametrize("method", ["GetLayer", "ListLayers", "DeleteLayer"])
def test_an_unknown_field_is_refused_by_its_number(layer_channel: grpc.Channel, method: str) -> None:
    call: Any = layer_channel.unary_unary(f"/{SERVICE}/{method}")
    answer = refused(lambda: call(UNKNOWN, timeout=60))
    assert (answer.code, answer.info.reason) == (grpc.StatusCode.UNIMPLEMENTED, "UNSUPPORTED")
    assert "request.100" in answer.text


def test_the_metrics_follow_what_is_put_and_deleted(layer_stub: LayerServiceStub, layer_server: RunningServer) -> None:
    unknown = 'convolver_refused_total{reason="UNKNOWN_LAYER"}'
    before, size = metric(layer_server, unknown), put(layer_stub, first(WEIGHT, BIAS)).bytes
    other = put_number(layer_stub, 1)
    assert metric(layer_server, "convolver_layers") == 2
    assert metric(layer_server, "convolver_layer_bytes") > size
    layer_stub.DeleteLayer(pb.DeleteLayerRequest(digest=other))
    assert (metric(layer_server, "convolver_layers"), metric(layer_server, "convolver_layer_bytes")) == (1, size)
    refused(lambda: layer_stub.GetLayer(pb.GetLayerRequest(digest=ABSENT)))
    assert metric(layer_server, unknown) == before + 1


def pages(stub: LayerServiceStub, size: int, between: Callable[[], object] = lambda: None) -> list[list[str]]:
    """The digests of each page; `between` is called after the first."""
    found, token = list[list[str]](), ""
    while token or not found:
        answer = stub.ListLayers(pb.ListLayersRequest(page_size=size, page_token=token))
        found.append([layer.digest for layer in answer.layers])
        token = answer.next_page_token
        if len(found) == 1:
            between()
    return found


def test_250_layers_come_in_pages_the_latest_used_first(layer_stub: LayerServiceStub) -> None:
    digests = [put_number(layer_stub, number) for number in range(250)]
    expected = digests[::-1]
    assert pages(layer_stub, 100) == [expected[:100], expected[100:200], expected[200:]]
    assert pages(layer_stub, 0) == pages(layer_stub, 100)
    assert pages(layer_stub, 125) == [expected[:125], expected[125:]]
    assert pages(layer_stub, 1000) == [expected]


def test_a_list_that_changes_between_pages_gives_nothing_twice_and_no_error(layer_stub: LayerServiceStub) -> None:
    digests = [put_number(layer_stub, number) for number in range(10)]

    def change() -> None:
        layer_stub.DeleteLayer(pb.DeleteLayerRequest(digest=digests[6]))  # the last of the first page
        layer_stub.DeleteLayer(pb.DeleteLayerRequest(digest=digests[3]))
        put_number(layer_stub, 9)
        put_number(layer_stub, 100)

    first_page, *others = pages(layer_stub, 4, change)
    assert first_page == digests[9:5:-1]
    assert [digest for page in others for digest in page] == [digests[number] for number in (5, 4, 2, 1, 0)]


def test_a_page_of_large_definitions_is_short_enough_to_be_received(
    layer_stub: LayerServiceStub, layer_channel: grpc.Channel
) -> None:
    filling = b"\x12\x02\x08\x0e" * 225_000  # the weight's dtype again and again, which protobuf merges
    header = (
        filling + definition(weight=tensor_pb2.Tensor(dtype=FLOAT32, shape=[1, 1, 1]), bias=None).SerializeToString()
    )
    length = bytes([len(header) & 0x7F | 0x80, len(header) >> 7 & 0x7F | 0x80, len(header) >> 14])
    for number in range(7):
        data = rest(np.float32(number).tobytes()).SerializeToString()
        put_raw(layer_channel, [b"\x0a" + length + header + data])
    assert [len(page) for page in pages(layer_stub, 1000)] == [3, 3, 1]


@pytest.mark.parametrize("size", [-1, 1001, -(2**31)])
def test_a_page_size_out_of_its_bounds_is_refused(layer_stub: LayerServiceStub, size: int) -> None:
    answer = refused(lambda: layer_stub.ListLayers(pb.ListLayersRequest(page_size=size)))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "page_size")


@pytest.mark.parametrize(
    "token", ["1", "-", "1-", f"1-{'0' * 64}", "next", "ä-ö", "9" * 10_000], ids=lambda token: token[:9]
)
def test_a_page_token_that_the_server_did_not_give_is_refused(layer_stub: LayerServiceStub, token: str) -> None:
    answer = refused(lambda: layer_stub.ListLayers(pb.ListLayersRequest(page_token=token)))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, "page_token")


def test_a_page_token_cannot_be_changed(layer_stub: LayerServiceStub) -> None:
    for number in range(3):
        put_number(layer_stub, number)
    token = layer_stub.ListLayers(pb.ListLayersRequest(page_size=1)).next_page_token
    for changed in (f"1{token}", token[1:], f"{token}0", token[:-1]):
        answer = refused(lambda changed=changed: layer_stub.ListLayers(pb.ListLayersRequest(page_token=changed)))  # type: ignore[misc]  # likewise
        assert answer.field == "page_token"
