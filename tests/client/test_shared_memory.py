"""Shared memory as the SDK uses it: which way a request takes, what is copied, and whose memory it is afterwards."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.client.shared_memory_calls import SHAPE, WEIGHT, numbers, travelled
from tests.server.hold_calls import mappings, shared, until_nothing_is_shared
from tests.server.layer_calls import metric
from tests.wait import until

from convolver.client import AsyncClient, Client, Conv, DeadlineExceeded, Pool
from convolver.core.errors import IntegerOverflow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import RunningServer

pytestmark = pytest.mark.usefixtures("patient_offers")  # the tests see which way requests take


@pytest.fixture(scope="module")
def sharing(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve("--shared-memory")


@pytest.fixture
def client(sharing: RunningServer) -> Iterator[Client]:
    with Client(sharing.address) as client:
        yield client
    until_nothing_is_shared(sharing)


@pytest.fixture
def plain(server: RunningServer) -> Iterator[Client]:
    """A client of a server that shares no memory."""
    with Client(server.address) as client:
        yield client


def test_large_arrays_do_not_travel(client: Client, plain: Client, sharing: RunningServer) -> None:
    given = numbers()
    expected = plain.convolve(given, WEIGHT)
    outputs: list[Any] = []
    assert travelled(sharing, lambda: outputs.append(client.convolve(given, WEIGHT))) < 2000
    np.testing.assert_array_equal(outputs[0], expected)
    assert shared(sharing)[0] == 2


def test_an_array_of_the_clients_own_is_not_copied(client: Client, plain: Client, sharing: RunningServer) -> None:
    given = client.empty(SHAPE)
    given[...] = numbers()
    np.testing.assert_array_equal(client.convolve(given, WEIGHT), plain.convolve(given, WEIGHT))
    assert shared(sharing)[0] == 2  # it, and the output
    np.testing.assert_array_equal(given, numbers())


def test_a_part_of_such_an_array_is_not_copied_either(client: Client, plain: Client, sharing: RunningServer) -> None:
    given = client.empty(SHAPE)
    given[...] = numbers()
    np.testing.assert_array_equal(client.convolve(given[1], WEIGHT), plain.convolve(numbers()[1], WEIGHT))
    assert shared(sharing)[0] == 2


def test_the_output_is_the_callers_own(client: Client) -> None:
    given = numbers()
    first = client.convolve(given, WEIGHT)
    kept = first.copy()
    assert first.flags.writeable
    second = client.convolve(-given, WEIGHT)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(second, -kept)


def test_a_view_keeps_its_memory(client: Client) -> None:
    given = numbers()
    view = client.convolve(given, WEIGHT)[1, 2, 5:].reshape(-1)[::3]
    kept = view.copy()
    gc.collect()
    for _ in range(3):
        client.convolve(-given, WEIGHT)
    np.testing.assert_array_equal(view, kept)


def test_memory_is_used_again(client: Client, sharing: RunningServer) -> None:
    given = numbers()
    for _ in range(10):
        client.convolve(given, WEIGHT)
    assert shared(sharing)[0] == 2


def test_the_output_goes_where_the_caller_wants_it(client: Client, plain: Client) -> None:
    given, expected = numbers(), plain.convolve(numbers(), WEIGHT)
    for out in (np.empty_like(expected), client.empty(expected.shape)):
        assert client.convolve(given, WEIGHT, out=out) is out
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "bfloat16", "float8_e5m2", "complex64"])
def test_each_kind_of_number(client: Client, plain: Client, dtype: str) -> None:
    given, weight = (
        np.abs(numbers((1, 1, 2048, 2048), seed))[:, :, : 2048 if seed == 2 else 2, :2048] for seed in (2, 3)
    )
    weight = weight[..., :2]
    kind = client.empty((1,), dtype).dtype
    given, weight = given.astype(kind), weight.astype(kind)
    parameters: Any = {"overflow": "wrap"}
    np.testing.assert_array_equal(
        client.convolve(given, weight, **parameters), plain.convolve(given, weight, **parameters)
    )


def test_gradients_with_values_that_are_not_needed(client: Client, plain: Client) -> None:
    given, grad = numbers(), numbers((2, 4, 510, 510), 2)
    for wrt in (("input",), ("weight",), ("input", "weight")):
        ours, theirs = (one.gradients(given, WEIGHT, grad, wrt=wrt, bias=True) for one in (client, plain))
        for name in ("input", "weight", "bias"):
            first, second = getattr(ours, name), getattr(theirs, name)
            np.testing.assert_allclose(first, second, rtol=1e-4) if second is not None else None
            assert (first is None) == (second is None)


def test_layers_and_stacks(client: Client, plain: Client, sharing: RunningServer) -> None:
    given, results = numbers(), []
    for one in (client, plain):
        layer = one.layer(WEIGHT, activation="relu")
        stack = one.stack([layer, Pool("max", 2), Conv(numbers((2, 4, 1, 1), 5))])
        results.append((layer(given), stack(given), layer(given)))
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert travelled(sharing, lambda: client.layer(WEIGHT, activation="relu")(given)) < 2000


def test_a_request_that_is_planned_again(client: Client, plain: Client) -> None:
    given, weight = numbers((1, 1, 1024, 1024)), numbers((1, 1, 31, 31), 1)
    given[0, 0, 500, 500] = np.nan
    np.testing.assert_array_equal(client.convolve(given, weight), plain.convolve(given, weight))


def test_many_threads_use_one_client(client: Client, plain: Client) -> None:
    inputs = [numbers(seed=seed) for seed in range(8)]
    expected = [plain.convolve(given, WEIGHT) for given in inputs]
    with ThreadPoolExecutor(4) as threads:
        for output, right in zip(
            threads.map(lambda x: client.convolve(x, WEIGHT), inputs * 3), expected * 3, strict=True
        ):
            np.testing.assert_array_equal(output, right)


async def of_async_client(address: str) -> tuple[np.ndarray[Any, Any], ...]:
    async with AsyncClient(address) as client:
        given = client.empty(SHAPE)
        given[...] = numbers()
        return tuple(await asyncio.gather(*(client.convolve(one, WEIGHT) for one in (given, numbers(), -given))))


def test_the_asynchronous_client(sharing: RunningServer, plain: Client) -> None:
    expected = plain.convolve(numbers(), WEIGHT)
    outputs: list[Any] = []
    assert travelled(sharing, lambda: outputs.extend(asyncio.run(of_async_client(sharing.address)))) < 5000
    for output, sign in zip(outputs, (1, 1, -1), strict=True):
        np.testing.assert_array_equal(output, sign * expected)
    until_nothing_is_shared(sharing)


def test_a_failed_calls_memory_is_not_used_again(client: Client, sharing: RunningServer) -> None:
    given = np.full((1, 1, 1100, 1100), 100, np.int8)
    for _ in range(3):
        with pytest.raises(IntegerOverflow):
            client.convolve(given, given[..., :2, :2])
    until(lambda: shared(sharing)[0] == 1, "the output's memory to be released")


def test_the_memory_of_a_call_that_took_too_long_stays_until_the_server_is_done(
    client: Client, sharing: RunningServer
) -> None:
    given, weight = numbers((1, 1, 1024, 1024)), numbers((1, 1, 64, 64), 1)
    until(lambda: mappings(sharing) == 0, "what was shared before to be unmapped")
    client.convolve(given, WEIGHT[:1, :1])  # so that memory is shared already
    with pytest.raises(DeadlineExceeded):
        client.convolve(given, weight, algorithm="direct", timeout=0.2)
    right = client.convolve(given, WEIGHT[:1, :1])
    until(lambda: metric(sharing, "convolver_in_flight") == 0, "the server to be done")
    later = client.convolve(given, WEIGHT[:1, :1])
    np.testing.assert_array_equal(later, right)
    until(lambda: mappings(sharing) == 3, "the memory that was written late to be unmapped, beside one input and two")


def test_what_a_server_refuses_goes_another_way(plain: Client, server: RunningServer) -> None:
    given = plain.empty(SHAPE)
    given[...] = numbers()
    expected = plain.convolve(numbers(), WEIGHT)
    assert travelled(server, lambda: plain.convolve(given, WEIGHT)) > given.nbytes
    np.testing.assert_array_equal(plain.convolve(given, WEIGHT), expected)


def test_what_does_not_fit_the_budget_goes_another_way(serve: Callable[..., RunningServer]) -> None:
    running = serve("--backend=reference", "--shared-memory", "--shared-memory-budget=7680KiB")
    with Client(running.address) as client:
        given = numbers()
        expected = client.convolve(given[:1, :, :100, :100], WEIGHT)
        assert travelled(running, lambda: client.convolve(given, WEIGHT)) > given.nbytes
        np.testing.assert_array_equal(client.convolve(given, WEIGHT)[:1, :, :98, :98], expected)
        few = numbers((1, 3, 320, 320))  # which fit with their output, but not beside what is kept
        assert travelled(running, lambda: client.convolve(few, WEIGHT)) > few.nbytes
        assert travelled(running, lambda: client.convolve(few, WEIGHT)) < 2000


def test_small_arrays_are_ordinary(client: Client) -> None:
    assert client.empty((4, 4), "int16").flags.owndata
    assert client.empty((0, 4)).shape == (0, 4)
