"""What does not run with others though it waits beside them, and that one's failure or leave is nobody else's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from tests.contract import SERVICE, convolution, refused, request
from tests.server.crowds import (
    FLAGS,
    OTHER_WEIGHT,
    SHAPE,
    WEIGHT,
    WEIGHT_SHAPE,
    Array,
    Busy,
    assert_right,
    convolved,
    crowd,
    image,
    numbers,
    ran_as_one,
)
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.client import Client, DeadlineExceeded
from convolver.core.errors import IntegerOverflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer


PATIENT = 6000.0
"""Seconds of a deadline that no estimate of what keeps the thread busy comes near."""


@pytest.fixture(scope="module")
def server(serve: Callable[..., RunningServer]) -> RunningServer:
    """With one thread."""
    return serve(*FLAGS, "--shared-memory")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    """Of that server."""
    with Client(server.address, timeout=PATIENT) as client:
        yield client


def reason_count(server: RunningServer, reason: str) -> int:
    return int(metric(server, f'convolver_unbatched_total{{reason="{reason}"}}'))


def test_other_weights_of_the_same_shape_run_apart(client: Client, server: RunningServer) -> None:
    inputs, weights = [image(seed) for seed in range(6)], [WEIGHT, OTHER_WEIGHT] * 3
    found = crowd(server, [partial(client.run, x, w) for x, w in zip(inputs, weights, strict=True)])
    assert (found.launches, found.requests, found.sizes) == (2, 6, [3] * 6)
    for outcome, x, w in zip(found.outcomes, inputs, weights, strict=True):
        np.testing.assert_array_equal(outcome.output, convolved(x, w))


def test_other_biases_run_apart(client: Client, server: RunningServer) -> None:
    x, biases = image(0), [numbers(16, seed=1), numbers(16, seed=2), None]
    found = crowd(server, [partial(client.run, x, WEIGHT, bias) for bias in biases])
    assert (found.launches, found.reasons) == (3, ["alone"] * 3)
    for outcome, bias in zip(found.outcomes, biases, strict=True):
        expected = convolved(x) + (0 if bias is None else bias[:, np.newaxis, np.newaxis])
        np.testing.assert_array_equal(outcome.output, expected)


def test_other_layers_of_the_same_shape_run_apart(client: Client, server: RunningServer) -> None:
    layers = [client.layer(w, resend=False) for w in (WEIGHT, OTHER_WEIGHT)]
    for layer in layers:
        layer.put()
    x, before = image(0), reason_count(server, "alone")
    found = crowd(server, [partial(layers[0].run, x), partial(layers[1].run, x), partial(client.run, x, WEIGHT)])
    assert (found.launches, found.reasons) == (3, ["alone"] * 3)
    assert reason_count(server, "alone") == before + 3
    for outcome, w in zip(found.outcomes, (WEIGHT, OTHER_WEIGHT, WEIGHT), strict=True):
        np.testing.assert_array_equal(outcome.output, convolved(x, w))


def test_stacks_with_one_other_weight_run_apart(client: Client, server: RunningServer) -> None:
    last = [numbers(4, 16, 1, 1, seed=seed) for seed in (1, 2)]
    x, stacks = image(0), [client.stack([client.layer(WEIGHT), client.layer(w)]) for w in last]
    for stack in stacks:  # from now on the server has its layers
        stack.run(x)
    found = crowd(server, [partial(stack.run, x) for stack in stacks])
    assert (found.launches, found.reasons) == (2, ["alone"] * 2)
    for outcome, w in zip(found.outcomes, last, strict=True):
        np.testing.assert_array_equal(outcome.output, convolved(convolved(x), w))


def test_deterministic_requests_run_alone_and_have_the_bits_of_always(client: Client, server: RunningServer) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, *SHAPE), WEIGHT_SHAPE))
    alone = client.run(x, w, deterministic=True)
    calls = [partial(client.run, x, w, deterministic=True)] * 3 + [partial(client.run, x, w)] * 3
    found = crowd(server, calls)
    assert found.sizes == [1, 1, 1, 3, 3, 3]
    assert found.reasons == ["deterministic"] * 3 + [""] * 3
    for outcome in found.outcomes[:3]:
        assert outcome.output.tobytes() == alone.output.tobytes()


def test_a_layers_first_calls_which_bring_it_run_alone(client: Client, server: RunningServer) -> None:
    layers = [client.layer(numbers(*WEIGHT_SHAPE, seed=seed)) for seed in (50, 51)]
    assert [layer.run(image(0)).report.unbatched for layer in layers] == ["ineligible"] * 2
    found = crowd(server, [partial(layers[0].run, image(seed)) for seed in range(3)])
    assert ran_as_one(found)


def test_requests_in_shared_memory_run_alone(client: Client, server: RunningServer) -> None:
    """And their outputs are where they should be."""
    w = numbers(4, 3, 3, 3)
    inputs = []
    for seed in range(3):
        x = client.empty((1, 3, 512, 512))
        x[...] = numbers(*x.shape, seed=seed)
        inputs.append(x)
    client.convolve(inputs[0], w)  # from now on the regions are known
    found = crowd(server, [partial(client.run, x, w) for x in inputs])
    assert (found.launches, found.reasons) == (3, ["ineligible"] * 3)
    assert_right(found, inputs, w)


def test_an_integer_overflow_is_its_own_requests(client: Client, server: RunningServer) -> None:
    w = numbers(*WEIGHT_SHAPE, dtype="int16")
    inputs = [image(seed, 2, "int16") for seed in range(5)]
    inputs[3][1, 4, 6, 7] = np.iinfo(np.int16).max
    with pytest.raises(IntegerOverflow) as alone:
        client.run(inputs[3], w)
    found = crowd(server, [partial(client.run, x, w) for x in inputs])
    failed = found.outcomes.pop(3)
    assert isinstance(failed, IntegerOverflow)
    assert str(failed) == str(alone.value)
    assert (found.launches, found.requests, found.sizes) == (1, 5, [1] * 4)
    assert_right(found, [*inputs[:3], inputs[4]], w)


def test_too_few_bytes_are_their_own_requests(client: Client, server: RunningServer) -> None:
    inputs = [image(seed) for seed in range(3)]
    message = request(convolution((1, *SHAPE), WEIGHT_SHAPE), WEIGHT, inputs[0][:, :15])
    with grpc.insecure_channel(server.address) as channel:
        calls: list[Callable[[], Any]] = [partial(client.run, x, WEIGHT) for x in inputs]
        found = crowd(server, [*calls, partial(refused, channel, message, timeout=PATIENT)])
    refusal = found.outcomes.pop()
    assert (refusal.code, refusal.info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONVOLUTION")
    assert_right(found, inputs)


def test_whoever_hangs_up_while_waiting_leaves_the_others_together(client: Client, server: RunningServer) -> None:
    inputs: list[Array] = [image(seed) for seed in range(4)]
    message = request(convolution((1, *SHAPE), WEIGHT_SHAPE), WEIGHT, image(9))
    with grpc.insecure_channel(server.address) as channel, ThreadPoolExecutor(4) as threads, Busy(server) as busy:
        raw: Any = channel.unary_unary(f"/{SERVICE}/Convolve")
        leaving = raw.future(message, timeout=PATIENT)
        busy.until_waiting(1)
        staying = [threads.submit(client.run, x, WEIGHT) for x in inputs]
        busy.until_waiting(5)
        leaving.cancel()
        busy.until_waiting(4)
        busy.let_go()
        answers = [each.result(60) for each in staying]
    assert [answer.report.batch_size for answer in answers] == [4] * 4
    for answer, x in zip(answers, inputs, strict=True):
        np.testing.assert_array_equal(answer.output, convolved(x))


def test_a_deadline_that_passes_while_waiting_leaves_the_others_together(serve: Callable[..., RunningServer]) -> None:
    """Of a server that has learnt nothing: another would refuse at once what would be late."""
    server, inputs = serve(*FLAGS), [image(seed) for seed in range(3)]
    client = Client(server.address, timeout=PATIENT)

    def pass_by(busy: Busy) -> None:
        with pytest.raises(DeadlineExceeded):
            client.run(image(9), WEIGHT, timeout=0.3)
        until(lambda: busy.in_flight == 4, "the late one to be forgotten")

    found = crowd(server, [partial(client.run, x, WEIGHT) for x in inputs], pass_by)
    assert ran_as_one(found)
    assert_right(found, inputs)
    client.close()


def test_all_may_hang_up_and_the_server_goes_on(client: Client, server: RunningServer) -> None:
    message = request(convolution((1, *SHAPE), WEIGHT_SHAPE), WEIGHT, image(9))
    with grpc.insecure_channel(server.address) as channel, Busy(server) as busy:
        raw: Any = channel.unary_unary(f"/{SERVICE}/Convolve")
        calls = [raw.future(message, timeout=PATIENT) for _ in range(5)]
        busy.until_waiting(5)
        for call in calls:
            call.cancel()
        busy.until_waiting(0)
    np.testing.assert_array_equal(client.convolve(image(1), WEIGHT), convolved(image(1)))
