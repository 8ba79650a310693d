"""Requests of one kind and the same weights that wait at the same moment run as one, and each gets its own answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from tests.contract import convolution
from tests.server.crowds import FLAGS, SHAPE, WEIGHT, assert_right, convolved, crowd, image, numbers, ran_as_one
from tests.server.layer_calls import metric
from tests.server.stream_calls import OpenStream, item, tensor

from convolver.client import Client, Conv, Layer, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer
    from tests.server.crowds import Array


INELIGIBLE = 'convolver_unbatched_total{reason="ineligible"}'


@pytest.fixture(scope="module")
def server(serve: Callable[..., RunningServer]) -> RunningServer:
    """With one thread."""
    return serve(*FLAGS)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    """Of that server."""
    with Client(server.address) as client:
        yield client


@pytest.fixture
def layer(client: Client) -> Layer:
    """That the server holds."""
    layer = client.layer(WEIGHT, resend=False)
    layer.put()
    return layer


def test_what_waits_with_the_same_weights_runs_as_one(client: Client, server: RunningServer) -> None:
    inputs = [image(seed) for seed in range(8)]
    series = ['convolver_batch_size_bucket{le="4.0"}', 'convolver_batch_size_bucket{le="8.0"}']
    before = [metric(server, each) for each in series]
    found = crowd(server, [partial(client.run, x, WEIGHT.copy()) for x in inputs])
    assert ran_as_one(found)
    assert_right(found, inputs)
    assert [metric(server, each) - was for each, was in zip(series, before, strict=True)] == [1, 2]  # the endless one


def test_other_numbers_of_items_and_none_at_all_join(client: Client, server: RunningServer) -> None:
    inputs = [image(seed, items) for seed, items in enumerate([2, None, 1, 5, None])]
    found = crowd(server, [partial(client.run, x, WEIGHT) for x in inputs])
    assert ran_as_one(found)
    assert_right(found, inputs)
    assert [outcome.plan.input.shape for outcome in found.outcomes] == [x.shape for x in inputs]


def test_layers_that_the_server_holds_join(layer: Layer, server: RunningServer) -> None:
    inputs = [image(seed, seed % 3 + 1) for seed in range(6)]
    found = crowd(server, [partial(layer.run, x) for x in inputs])
    assert ran_as_one(found)
    assert_right(found, inputs)


def test_callers_and_priorities_join(server: RunningServer) -> None:
    inputs = [image(seed) for seed in range(4)]
    with Client(server.address) as one, Client(server.address) as other:
        bulk = [
            partial(client.run, x, WEIGHT, priority="bulk") for client, x in zip([one, other], inputs[:2], strict=True)
        ]
        plain = [partial(client.run, x, WEIGHT) for client, x in zip([one, other], inputs[2:], strict=True)]
        found = crowd(server, [*bulk, *plain])
    assert ran_as_one(found)
    assert_right(found, inputs)


def test_requests_of_a_stream_join_those_of_others(client: Client, server: RunningServer) -> None:
    frames, x = {number: image(number) for number in range(5)}, image(9)
    header = convolution((1, *SHAPE), WEIGHT.shape)

    def stream() -> dict[int, Array]:
        with grpc.insecure_channel(server.address) as channel, OpenStream(channel) as opened:
            opened.send(*(item(number, header, WEIGHT, frame) for number, frame in frames.items()))
            opened.close()
            return {answer.id: tensor(answer) for answer in opened}

    found = crowd(server, [stream, partial(client.run, x, WEIGHT)], waiting=6)
    outputs, answer = found.outcomes
    assert (found.launches, found.requests, answer.report.batch_size) == (1, 6, 6)
    assert sorted(outputs) == sorted(frames)
    for number, frame in frames.items():
        np.testing.assert_array_equal(outputs[number], convolved(frame))
    np.testing.assert_array_equal(answer.output, convolved(x))


def test_stacks_join(client: Client, server: RunningServer) -> None:
    inputs = [image(seed, items) for seed, items in enumerate([1, None, 2, 3])]
    second = numbers(4, 16, 1, 1, seed=7)
    stack = client.stack([Conv(WEIGHT), Pool("max", 2), Conv(second)])
    found = crowd(server, [partial(stack.run, x) for x in inputs])
    assert ran_as_one(found)
    for outcome, x in zip(found.outcomes, inputs, strict=True):
        y = convolved(x)
        pooled = y.reshape(*y.shape[:-2], 15, 2, 15, 2).max((-3, -1))
        np.testing.assert_array_equal(outcome.output, convolved(pooled, second))


def test_stacks_of_held_and_of_sent_weights_join_with_the_same(
    client: Client, layer: Layer, server: RunningServer
) -> None:
    inputs, second = [image(seed) for seed in range(3)], numbers(4, 16, 1, 1, seed=7)
    stack = client.stack([layer, Conv(second)])
    found = crowd(server, [partial(stack.run, x) for x in inputs])
    assert ran_as_one(found)
    for outcome, x in zip(found.outcomes, inputs, strict=True):
        np.testing.assert_array_equal(outcome.output, convolved(convolved(x), second))


def test_a_layer_deleted_meanwhile_serves_those_that_wait(client: Client, layer: Layer, server: RunningServer) -> None:
    inputs = [image(seed) for seed in range(4)]
    digest = layer.digest
    found = crowd(server, [partial(layer.run, x) for x in inputs], lambda _: client.delete_layer(digest))
    assert ran_as_one(found)
    assert_right(found, inputs)


def test_gradients_and_large_requests_say_why_they_ran_alone(client: Client, server: RunningServer) -> None:
    x, large, kernels = image(0), numbers(32, 40, 40), numbers(64, 32, 5, 5)
    calls: list[Callable[[], object]] = [partial(client.gradients, x, WEIGHT, convolved(x))] * 2
    before = metric(server, INELIGIBLE)
    found = crowd(server, [*calls, *[partial(client.run, large, kernels)] * 2])
    assert (found.launches, found.requests) == (4, 4)
    assert found._replace(outcomes=found.outcomes[2:]).reasons == ["large"] * 2
    assert metric(server, INELIGIBLE) == before + 2


def test_no_more_than_max_batch_run_as_one(serve: Callable[..., RunningServer]) -> None:
    server = serve(*FLAGS, "--max-batch=3")
    inputs = [image(seed) for seed in range(7)]
    with Client(server.address) as client:
        found = crowd(server, [partial(client.run, x, WEIGHT) for x in inputs])
    assert sorted(found.sizes) == [1, 3, 3, 3, 3, 3, 3]
    assert sorted(found.reasons) == [*[""] * 6, "alone"]
    assert (found.launches, found.requests) == (3, 7)
    assert_right(found, inputs)
    assert server.stop() == 0


def test_with_a_max_batch_of_one_nothing_is_batched(serve: Callable[..., RunningServer]) -> None:
    server = serve(*FLAGS, "--max-batch=1")
    inputs = [image(seed) for seed in range(3)]
    with Client(server.address) as client:
        found = crowd(server, [partial(client.run, x, WEIGHT) for x in inputs])
    assert (found.sizes, found.reasons, found.launches) == ([1] * 3, ["disabled"] * 3, 3)
    assert_right(found, inputs)
    assert metric(server, 'convolver_unbatched_total{reason="disabled"}') == 3
    assert server.stop() == 0


def test_torch_batches_as_well(serve: Callable[..., RunningServer]) -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    server = serve("--threads=1", "--backend=auto", "--queue-seconds=1000")
    inputs, w = [numbers(*SHAPE, seed=seed) for seed in range(4)], numbers(128, 16, 3, 3, seed=3)
    with Client(server.address, timeout=6000) as client:
        layer = client.layer(w, backend="torch")
        layer.put()
        found = crowd(server, [partial(layer.run, x) for x in inputs])
    assert [outcome.plan.backend for outcome in found.outcomes] == ["torch:cpu"] * 4
    assert ran_as_one(found)
    assert_right(found, inputs, w)
    assert server.stop() == 0


def test_with_a_free_thread_nothing_waits_for_company(client: Client) -> None:
    answer = client.run(image(0), WEIGHT)
    assert (answer.report.batch_size, answer.report.unbatched) == (1, "alone")
