"""Layers of a request that bring no weights: what is said of weights that are not there, and which one is unknown."""

from __future__ import annotations

import grpc
import pytest
from tests.contract import refused, request
from tests.server.kept_layers import X, maximum, named, through

ABSENT = f"sha256:{'0' * 64}"


@pytest.mark.parametrize("source", ["weight_source", "bias_source"])
@pytest.mark.parametrize("kind", ["digest", "pooling"])
def test_a_source_of_weights_that_a_layer_does_not_bring_is_refused(
    channel: grpc.Channel, kind: str, source: str
) -> None:
    layer = named(ABSENT) if kind == "digest" else maximum(2)
    getattr(layer, source).index = 0
    answer = refused(channel, request(through(layer), X))
    assert (answer.code, answer.field) == (grpc.StatusCode.INVALID_ARGUMENT, f"layers[0].{source}")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_unknown_layer_of_a_stack_is_named_by_its_index(channel: grpc.Channel, place: int) -> None:
    layers = [maximum(1), maximum(1), maximum(1)]
    layers[place] = named(ABSENT)
    answer = refused(channel, request(through(*layers), X))
    assert answer.code == grpc.StatusCode.NOT_FOUND
    assert answer.text.startswith(f"layers[{place}]: {ABSENT} ")
    assert answer.info.metadata["digest"] == ABSENT


def test_of_a_single_layer_there_is_no_index(channel: grpc.Channel) -> None:
    answer = refused(channel, request(through(named(ABSENT)), X))
    assert answer.text.startswith(ABSENT)
